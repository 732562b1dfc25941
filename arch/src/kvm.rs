//! The host half of a backend. It uses only those kvm-ioctls handles that exist on every target.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::kernel::{KernelHeader, KernelImage};
use crate::{BootError, Gsi, GuestRam, KernelPlacement, KvmError, MachinePlan, Platform};

/// The host half: applies a plan through KVM. Every method is mechanical; decisions belong to
/// [`Platform`].
pub trait KvmPlatform: Platform {
    /// The interrupt chip once it exists.
    type Chip: KvmIrqChip;

    /// Reasons of exits that only this architecture has (KVM_EXIT_*) and that KVM has filled in as the guest
    /// is to find them: there is nothing to do.
    const QUIET_EXITS: &'static [u32] = &[];

    /// Reads the host's facts. The only reader of host state.
    ///
    /// # Errors
    /// When KVM lacks something the backend cannot do without.
    fn probe(kvm: &Kvm) -> Result<Self, KvmError>;

    /// The machine type bits of KVM_CREATE_VM.
    fn vm_type(&self, _plan: &MachinePlan) -> u64 {
        0
    }

    /// Copies a kernel to where [`Platform::place_kernel`] has put it.
    ///
    /// # Errors
    /// When the file cannot be read, or its format is not compiled in.
    fn load_kernel(
        &self,
        image: &mut KernelImage,
        header: &KernelHeader,
        kernel: &KernelPlacement,
        ram: &GuestRam,
    ) -> Result<(), BootError>;

    /// What the VM needs right after its memslots and before anything else.
    ///
    /// # Errors
    /// The failed ioctl.
    fn prepare_vm(&self, vm: &VmFd) -> Result<(), KvmError>;

    /// Creates the interrupt chip, before the vCPUs.
    ///
    /// # Errors
    /// The failed ioctl.
    fn create_irq_chip(&self, vm: &VmFd, model: &Self::IrqChip) -> Result<Self::Chip, KvmError>;

    /// Writes a vCPU's registers.
    ///
    /// # Errors
    /// The failed ioctl.
    fn apply_vcpu(&self, vm: &VmFd, vcpu: &VcpuFd, setup: &Self::VcpuSetup)
    -> Result<(), KvmError>;

    /// The vCPU's registers for a crash report, several lines; `ram` lets it show the instruction
    /// bytes.
    fn describe_vcpu(&self, vcpu: &VcpuFd, ram: &GuestRam) -> String;
}

/// An interrupt chip that exists in KVM.
pub trait KvmIrqChip: Send + Sync {
    /// Finishes the chip after all vCPUs exist.
    ///
    /// # Errors
    /// The failed ioctl.
    fn activate(&self, vm: &VmFd) -> Result<(), KvmError>;

    /// Makes each write to `event` an edge on a line, for as long as the chip is there.
    ///
    /// # Errors
    /// The failed ioctl.
    fn connect(&self, vm: &Arc<VmFd>, event: &EventFd, gsi: Gsi) -> Result<(), KvmError> {
        vm.register_irqfd(event, gsi)
            .map_err(KvmError::of("KVM_IRQFD"))
    }
}
