//! What building a VM would say, without building it: nothing is created, locked, emptied or connected.

use arch::{MachinePlan, Planner};

use crate::kernel::image;
use crate::memory::Backing;
use crate::{Error, NamedFiles, PlannedFor, VmConfig, memory};

/// Plans the machine that a configuration gives, and finds what would keep it from being built: files that
/// cannot be read or written, a kernel or initrd that does not fit, devices that the host refuses. What other
/// programs have now and may have given up by then (a disk, a tap, a socket, a file that is written) is a remark of
/// the plan, so that a VM which runs can be planned as well; so is a FIFO, whose readers cannot be looked for without
/// disturbing them.
///
/// # Errors
/// Those that [`Machine::with_hello`](crate::Machine::with_hello) would give.
pub fn rehearse(
    planner: &dyn Planner,
    config: &VmConfig,
    planned_for: PlannedFor,
) -> Result<MachinePlan, Error> {
    let here = planned_for == PlannedFor::ThisHost;
    // The file is opened and unpacked once. The built-in guest is this host's.
    let hello = crate::hello_guest().filter(|_| here);
    let kernel = match (&config.kernel, hello) {
        (None, None) if !here => None,
        _ => Some(image::kernel(config, hello)?),
    };
    let guest = match &kernel {
        Some(kernel) => kernel.guest,
        None => image::guest_kernel(config),
    };
    let mut plan = planner.plan(&config.machine_for(guest)?)?;
    config.name_devices(&mut plan);
    if here {
        config.check_descriptors()?;
        config.check_outputs(&NamedFiles::default())?;
        plan.remarks.extend(memory::check_host(config)?);
    }
    memory::check(&plan, Backing::of(config), planned_for)?;
    #[cfg(feature = "virtio")]
    plan.remarks
        .extend(crate::devices::virtio::check(config, planned_for)?);
    let initrd = image::Initrd::of(config)?;
    plan.remarks
        .extend(initrd.as_ref().and_then(image::Initrd::remark));
    if let Some(kernel) = &kernel {
        load(planner, &plan, kernel, initrd, planned_for)?;
    }
    Ok(plan)
}

/// Finds out whether kernel, initrd and boot information find their places.
fn load(
    planner: &dyn Planner,
    plan: &MachinePlan,
    kernel: &image::Kernel,
    initrd: Option<image::Initrd>,
    planned_for: PlannedFor,
) -> Result<(), Error> {
    let boot = |source| Error::Boot {
        field: "kernel".into(),
        value: kernel.name.clone(),
        source,
    };
    let placed = planner.kernel_place(&kernel.header, plan).map_err(boot)?;
    let initrd = initrd
        .map(|initrd| initrd.place(&placed, plan))
        .transpose()?;
    // Reserved lazily, whatever the VM's own will be.
    let ram = match (memory::map_ram(plan, Backing::default()), planned_for) {
        (Ok(ram), _) => ram,
        (Err(error), PlannedFor::ThisHost) => return Err(error),
        (Err(_), PlannedFor::AnotherHost) => return Ok(()),
    };
    planner
        .boot_info(plan, &placed, initrd, &ram)
        .map_err(boot)?;
    Ok(())
}

impl VmConfig {
    /// Checks every value as far as no platform is asked, and the descriptors that the configuration names: they are
    /// open, as a tap's number or as a path like `/dev/fd/3`, and those of taps are of tap devices. Whoever opens files
    /// of its own does this before, since one of those might get the number.
    ///
    /// # Errors
    /// Names the value or the descriptor and what is wrong with it.
    pub fn check_descriptors(&self) -> Result<(), Error> {
        self.check()?;
        self.check_descriptor_paths()?;
        #[cfg(feature = "virtio-net")]
        crate::devices::virtio::check_descriptors(self)?;
        Ok(())
    }

    /// Checks that the kernel, the initrd and the disks can be opened and that the kernel is one,
    /// without loading anything.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn check_images(&self) -> Result<(), Error> {
        if let Some(path) = &self.kernel {
            crate::kernel::image::check_kernel(path, self.guest_memory.bytes())?;
        }
        let initrd = crate::kernel::image::Initrd::of(self)?;
        if let Some(remark) = initrd.and_then(|initrd| initrd.remark()) {
            log::warn!("{remark}");
        }
        #[cfg(feature = "virtio")]
        crate::devices::virtio::check(self, crate::PlannedFor::AnotherHost)?;
        Ok(())
    }
}
