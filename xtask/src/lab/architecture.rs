//! What the lab has to know of an architecture: its machine, its packages, what its guests are told and have.

use crate::step::Result;

/// Makes a guest's kernel of the packaged one.
pub(super) type Convert = fn(&[u8]) -> Result<Vec<u8>>;

/// One architecture.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// Rust's name.
    pub(crate) name: &'static str,
    /// Debian's name.
    pub(crate) debian: &'static str,
    pub(super) qemu: &'static str,
    pub(super) qemu_package: &'static str,
    pub(super) qemu_arguments: &'static str,
    pub(super) qemu_cmdline: &'static str,
    /// Where its packages come from, the first that can be had; none: the machine's own release.
    pub(super) suites: &'static [&'static str],
    /// The metapackage of the kernel, both of the machine and of its guests.
    pub(super) kernel_package: &'static str,
    /// The metapackage of the kernels of the stock systems among its guests, where the release has them.
    pub(crate) system_kernel: Option<&'static str>,
    /// Kernel parameters that keep a stock system from its disk on PCI.
    pub(super) without_disk: &'static [&'static str],
    /// Modules for /dev/kvm, taps and the stock systems' disk.
    pub(super) modules: &'static [&'static str],
    /// What guests load besides: this architecture's own devices, what its kernel has not built in.
    pub(super) guest_modules: &'static [&'static str],
    /// Whether the kernel has a driver that tells of panics.
    pub(super) has_pvpanic: bool,
    /// Whether the machine has a power button that the kernel knows.
    pub(super) has_power_button: bool,
    /// A kernel that is no Linux: the package, and the file in it.
    pub(super) other_kernel: Option<(&'static str, &'static str)>,
    /// Whether the machine's kernel tells which pages were written (userfaultfd's write protection).
    pub(super) tells_changes: bool,
    /// Values of `--lean` that make a difference.
    pub(super) lean: &'static [&'static str],
    /// The static build.
    pub(crate) target: &'static str,
    /// Target and package of the micro-guests.
    pub(super) guests: (&'static str, &'static str),
    /// Devices that a guest must find in its device tree or ACPI name space.
    pub(super) devices: &'static [&'static str],
    /// Machines with less.
    pub(super) lesser: &'static [Lesser],
    /// The guests' kernels, by file name.
    pub(super) guest_kernels: &'static [(&'static str, Convert)],
}

/// A first-level machine with less than the architecture's own.
#[derive(Debug)]
pub(super) struct Lesser {
    pub(super) name: &'static str,
    pub(super) qemu_arguments: &'static str,
    /// What the VMM says that it lacks; otherwise guests run all the same.
    pub(super) lacks: Option<&'static str>,
}
