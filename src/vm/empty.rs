//! A machine that has everything but what its guest is at, and how a kernel gets into it.

use std::path::Path;

use arch::{BootRequest, GuestRam, KvmPlatform, MachinePlan};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::Error;
use crate::devices::generation::Generation;
use crate::devices::registry::Registry;
use crate::kernel::image::{Initrd, Kernel};
use crate::random::random;
use crate::timeline::{Milestone, Timeline};
use crate::vm::dispatch::IoSpaces;
use crate::vm::story::Story;

/// A machine that has everything but what its guest is at.
// A kernel needs less of it than a saved machine.
#[cfg_attr(not(feature = "snapshot"), allow(dead_code))]
pub(crate) struct Empty<'a, P: KvmPlatform> {
    pub(crate) platform: &'a P,
    pub(crate) plan: &'a MachinePlan,
    pub(crate) irq_chip: &'a P::IrqChip,
    pub(crate) chip: &'a P::Chip,
    pub(crate) vm: &'a VmFd,
    pub(crate) vcpus: &'a [VcpuFd],
    pub(crate) spaces: &'a IoSpaces,
    pub(crate) generation: Option<&'a Generation>,
    pub(crate) registry: &'a Registry,
    pub(crate) ram: &'a GuestRam,
}

impl<P: KvmPlatform> Empty<'_, P> {
    /// The boot vCPU is about to enter the kernel.
    pub(crate) fn boot(
        &self,
        kernel: Kernel,
        initrd: Option<(&Initrd, &Path)>,
        story: &Story,
        timeline: &Timeline,
    ) -> Result<(), Error> {
        let Self {
            platform,
            plan,
            irq_chip,
            vm,
            ram,
            generation,
            ..
        } = *self;
        let Kernel {
            mut image,
            header,
            name,
            ..
        } = kernel;
        let refused = |source| Error::Boot {
            field: "kernel".into(),
            value: name.clone(),
            source,
        };
        let kernel = platform.place_kernel(&header, plan).map_err(refused)?;
        platform
            .load_kernel(&mut image, &header, &kernel, ram)
            .map_err(refused)?;
        let (path, initrd) = match initrd {
            Some((initrd, path)) => (Some(path), Some(initrd.load(&kernel, plan, ram)?)),
            None => (None, None),
        };
        story.loaded(&kernel, path.zip(initrd.as_ref()));
        timeline.reach(Milestone::Loaded);
        let request = BootRequest {
            plan,
            irq_chip,
            kernel: &kernel,
            initrd,
            seed: &random()?,
        };
        let boot_info = platform.build_boot_info(&request, ram).map_err(refused)?;
        story.told(&boot_info);
        if let Some(generation) = generation {
            generation.renew(ram)?;
        }
        for (id, vcpu) in (0..).zip(self.vcpus) {
            let boot = (id == 0).then_some(&boot_info);
            platform.apply_vcpu(vm, vcpu, &platform.configure_vcpu(id, plan, boot)?)?;
        }
        Ok(())
    }
}
