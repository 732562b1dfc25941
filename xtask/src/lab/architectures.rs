//! The table of the lab: another architecture is another row.

use super::images;
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

pub(crate) const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "x86_64",
        debian: "amd64",
        qemu: "qemu-system-x86_64",
        qemu_package: "qemu-system-x86",
        // One processor: with several, guests of this emulated SVM crash now and then
        // (docs/architecture.md, known limits).
        qemu_arguments: "-M q35 -accel tcg,thread=multi -cpu max -smp 1 -m 2048",
        qemu_cmdline: "console=ttyS0 panic=-1 quiet mitigations=off tsc=reliable",
        suites: &[],
        kernel_package: "linux-image-cloud-amd64",
        system_kernel: Some("linux-image-cloud-amd64"),
        // Message-signalled interrupts are the only ones there; without ACPI the kernel has no APIC.
        without_disk: &["acpi=off", "pci=nomsi"],
        modules: &["kvm-amd", "kvm-intel", "tun", "virtio_blk"],
        guest_modules: &["button", "evdev", "pvpanic-mmio"],
        has_pvpanic: true,
        has_power_button: true,
        other_kernel: Some(("memtest86+", "boot/memtest86+x64.bin")),
        lean: &["on", "off"],
        target: "x86_64-unknown-linux-musl",
        guests: ("x86_64-unknown-none", "micro-guest"),
        devices: &["ACPI0007:00", "PNP0501:00", "PNP0B00:00"],
        lesser: &[],
        guest_kernels: &[("bzImage", images::packaged), ("vmlinux", images::vmlinux)],
    },
    Architecture {
        name: "aarch64",
        debian: "arm64",
        qemu: "qemu-system-aarch64",
        qemu_package: "qemu-system-arm",
        qemu_arguments: "-M virt,virtualization=on,gic-version=3 -accel tcg,thread=multi \
            -cpu max,pauth-impdef=on -smp 2 -m 2048",
        qemu_cmdline: "console=ttyAMA0 panic=-1 quiet",
        suites: &[],
        // Unlike the cloud kernel it has a driver for keys on GPIO lines.
        kernel_package: "linux-image-arm64",
        system_kernel: Some("linux-image-cloud-arm64"),
        without_disk: &["pci=nomsi"],
        modules: &["tun", "virtio_blk", "ext4"],
        guest_modules: &["evdev", "gpio_keys", "ext4"],
        has_pvpanic: false,
        has_power_button: true,
        other_kernel: None,
        lean: &[],
        target: "aarch64-unknown-linux-musl",
        guests: ("aarch64-unknown-none-softfloat", "micro-guest-aarch64"),
        devices: &[
            "interrupt-controller@8000000",
            "psci",
            "pmu",
            "rtc@9001000",
            "serial@9000000",
            "timer",
        ],
        lesser: &[Lesser {
            name: "GICv2",
            qemu_arguments: "-M virt,virtualization=on,gic-version=2 -accel tcg,thread=multi \
                -cpu max,pauth-impdef=on -smp 2 -m 2048",
            lacks: Some("an interrupt controller GICv3"),
        }],
        guest_kernels: &[
            ("Image", images::packaged),
            ("Image.gz", images::gzip),
            ("vmlinuz.efi", images::zboot),
        ],
    },
    Architecture {
        name: "riscv64",
        debian: "riscv64",
        qemu: "qemu-system-riscv64",
        qemu_package: "qemu-system-misc",
        qemu_arguments: "-M virt,aia=aplic-imsic,aia-guests=4 -accel tcg,thread=multi -cpu max \
            -smp 2 -m 2048",
        qemu_cmdline: "console=ttyS0 panic=-1 quiet",
        // The older release has no such packages.
        suites: &["trixie", "forky", "sid"],
        kernel_package: "linux-image-riscv64",
        system_kernel: None,
        without_disk: &["pci=nomsi"],
        modules: &["kvm", "tun"],
        guest_modules: &["ext4"],
        has_pvpanic: false,
        has_power_button: false,
        other_kernel: None,
        lean: &[],
        target: "riscv64gc-unknown-linux-gnu",
        guests: ("riscv64gc-unknown-none-elf", "micro-guest-riscv64"),
        devices: &[
            "interrupt-controller@28000000",
            "interrupt-controller@d000000",
            "soc",
        ],
        lesser: &[
            Lesser {
                name: "no guest interrupt files",
                qemu_arguments: "-M virt,aia=aplic-imsic -accel tcg,thread=multi -cpu max -smp 2 \
                    -m 2048",
                lacks: None,
            },
            Lesser {
                name: "no AIA",
                qemu_arguments: "-M virt -accel tcg,thread=multi -cpu max,smaia=off,ssaia=off -smp 2 \
                    -m 2048",
                lacks: Some("the interrupt architecture AIA"),
            },
        ],
        guest_kernels: &[
            ("Image", images::packaged),
            ("Image.gz", images::gzip),
            ("vmlinuz.efi", images::zboot),
        ],
    },
];
