//! Plans that need no KVM.

use arch::kernel::Protocol;
use arch::{
    AddressRange, BootError, KernelPlacement, MachineConfig, MachinePlan, Planner, Platform,
};
use vm_memory::{Bytes, GuestAddress};

use crate::kernel::image;
use crate::memory::{self, Backing};
use crate::{Error, VmConfig};

/// Computes the machine that a configuration gives on a platform. Needs no KVM.
///
/// # Errors
/// When a value is refused; the error names it.
pub fn plan<P: Platform>(platform: &P, config: &VmConfig) -> Result<MachinePlan, Error> {
    let mut plan = platform.setup_memory_layout(&config.machine()?)?;
    config.name_devices(&mut plan);
    Ok(plan)
}

/// The device tree that a kernel would get, on a machine that need not run here. A kernel that
/// occupies nothing stands for any kernel, and zeros for the random seeds.
///
/// # Errors
/// When the machine's kernels get none, or the initrd or the command line does not fit.
pub fn device_tree(
    planner: &dyn Planner,
    plan: &MachinePlan,
    config: &VmConfig,
) -> Result<Vec<u8>, Error> {
    let ram = memory::map_ram(plan, Backing::default())?;
    let window = plan.kernel_window;
    let kernel = KernelPlacement {
        entry: window.base,
        range: AddressRange::new(window.base, 0),
        initrd_limit: None,
        protocol: Protocol::DeviceTree,
        setup_header: Vec::new(),
    };
    let initrd = image::Initrd::of(config)?
        .map(|initrd| initrd.load(&kernel, plan, &ram))
        .transpose()?;
    let boot = |source| Error::Boot {
        field: "arch".into(),
        value: plan.arch.clone().into_owned(),
        source,
    };
    let info = planner
        .boot_info(plan, &kernel, initrd, &ram)
        .map_err(boot)?;
    let tree = info
        .placed
        .iter()
        .find(|block| info.arguments.contains(&block.range.base));
    let place = tree.map_or(AddressRange::new(0, 0), |block| block.range);
    let mut bytes = vec![0; usize::try_from(place.len).unwrap_or(0)];
    ram.read_slice(&mut bytes, GuestAddress(place.base))
        .map_err(|source| {
            boot(BootError::Memory {
                what: "the device tree",
                source,
            })
        })?;
    Ok(bytes)
}

impl VmConfig {
    /// The part of the configuration that shapes the machine. Looks into the kernel's file, if there is
    /// one, for the little that matters.
    ///
    /// # Errors
    /// When a value is refused whatever the platform.
    pub fn machine(&self) -> Result<MachineConfig, Error> {
        self.machine_for(image::guest_kernel(self))
    }
}
