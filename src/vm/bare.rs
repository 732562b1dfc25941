//! A VM before it has devices and a kernel: its RAM, its interrupt chip and its vCPUs. Whatever runs a guest begins with
//! one, a machine as well as a probe of the host.

use std::sync::Arc;

use arch::{GuestRam, KvmError, KvmIrqChip, KvmPlatform, MachinePlan};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::Error;
use crate::memory;
use crate::timeline::{Milestone, Timeline};

/// A VM that has what its guest cannot be without, but for something to run.
pub(crate) struct Bare<P: KvmPlatform> {
    // Fields drop in this order: RAM last, which the VM's memslots refer to.
    /// By their ids.
    pub(crate) vcpus: Vec<VcpuFd>,
    pub(crate) chip: P::Chip,
    pub(crate) vm: Arc<VmFd>,
    /// The interrupt chip as it was planned.
    pub(crate) irq_chip: P::IrqChip,
    pub(crate) ram: GuestRam,
}

impl<P: KvmPlatform> Bare<P> {
    /// Makes the VM of a plan, with the RAM that `map` gives.
    ///
    /// # Errors
    /// Names what KVM or the host refused.
    pub(crate) fn new(
        kvm: &Kvm,
        platform: &P,
        plan: &MachinePlan,
        map: impl FnOnce() -> Result<GuestRam, Error>,
        timeline: &Timeline,
    ) -> Result<Self, Error> {
        // All memslots come straight after the VM: a later one waits for a grace period.
        let vm = Arc::new(create_vm(kvm, platform.vm_type(plan))?);
        let ram = map()?;
        memory::set_memslots(&vm, &ram)?;
        platform.prepare_vm(&vm)?;
        timeline.reach(Milestone::Memory);

        let irq_chip = platform.irq_chip(plan)?;
        let chip = platform.create_irq_chip(&vm, &irq_chip)?;
        let vcpus = (0..plan.vcpus)
            .map(|id| {
                vm.create_vcpu(id.into())
                    .map_err(KvmError::of("KVM_CREATE_VCPU"))
            })
            .collect::<Result<Vec<_>, _>>()?;
        chip.activate(&vm)?;
        timeline.reach(Milestone::Vcpus);
        Ok(Self {
            vcpus,
            chip,
            vm,
            irq_chip,
            ram,
        })
    }
}

/// A signal of the embedding program may interrupt this ioctl, which the kernel does not restart.
fn create_vm(kvm: &Kvm, vm_type: u64) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm_with_type(vm_type) {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.map_err(KvmError::of("KVM_CREATE_VM")),
        }
    }
}
