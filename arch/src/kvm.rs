//! The host half of a backend. It uses only those kvm-ioctls handles that exist on every target.

use std::io;
use std::sync::Arc;

use crate::kernel::{KernelHeader, KernelImage, Protocol};
use crate::{
    BootError, EventFd, Gsi, GuestRam, KernelPlacement, Kvm, KvmError, MachinePlan, Platform,
    VcpuFd, VmFd,
};

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

    /// A vCPU has left the guest for a pause, which its guest will see as lost time, or is about to enter it after one that
    /// it was saved for: a clock that KVM shares with the guest is told here. Called by the thread that has the vCPU.
    fn vcpu_paused(&self, vcpu: &VcpuFd) {
        let _ = vcpu;
    }

    /// Everything of a vCPU that has left the guest with no access of its own pending.
    ///
    /// # Errors
    /// The failed ioctl, or what this KVM cannot save.
    fn save_vcpu(&self, vm: &VmFd, vcpu: &VcpuFd) -> Result<Self::VcpuState, KvmError> {
        let _ = (vm, vcpu);
        Err(KvmError::NotSaved("a vCPU"))
    }

    /// Makes a new vCPU what the saved one was. It was configured as one that waits, and the chip is loaded already.
    ///
    /// # Errors
    /// The failed ioctl.
    fn load_vcpu(&self, vm: &VmFd, vcpu: &VcpuFd, state: &Self::VcpuState) -> Result<(), KvmError> {
        let _ = (vm, vcpu, state);
        Err(KvmError::NotSaved("a vCPU"))
    }

    /// The interrupt chip, once no vCPU runs. May write guest memory.
    ///
    /// # Errors
    /// As [`Self::save_vcpu`].
    fn save_chip(&self, vm: &VmFd, chip: &Self::Chip) -> Result<Self::ChipState, KvmError> {
        let _ = (vm, chip);
        Err(KvmError::NotSaved("the interrupt chip"))
    }

    /// Makes a new interrupt chip, which is active and whose vCPUs are configured as ones that wait, what the saved one
    /// was. Guest memory has its content already.
    ///
    /// # Errors
    /// The failed ioctl.
    fn load_chip(
        &self,
        vm: &VmFd,
        chip: &Self::Chip,
        state: &Self::ChipState,
    ) -> Result<(), KvmError> {
        let _ = (vm, chip, state);
        Err(KvmError::NotSaved("the interrupt chip"))
    }

    /// The clock that a VM shares with its guest, once no vCPU runs.
    ///
    /// # Errors
    /// The failed ioctl.
    fn save_clock(&self, vm: &VmFd) -> Result<Self::ClockState, KvmError> {
        let _ = vm;
        Err(KvmError::NotSaved("the clock"))
    }

    /// Sets the clock of a new VM, before its vCPUs are loaded: it goes on where it stopped.
    ///
    /// # Errors
    /// The failed ioctl.
    fn load_clock(&self, vm: &VmFd, state: &Self::ClockState) -> Result<(), KvmError> {
        let _ = (vm, state);
        Err(KvmError::NotSaved("the clock"))
    }

    /// The vCPU's registers for a crash report, several lines; `ram` lets it show the instruction
    /// bytes.
    fn describe_vcpu(&self, vcpu: &VcpuFd, ram: &GuestRam) -> String;

    /// A program that shows whether this host's KVM runs a guest's kernel natively. `None` where no KVM of
    /// the architecture interprets one.
    fn probe_program(&self) -> Option<ProbeProgram> {
        None
    }
}

/// A guest of a few instructions that runs in a kernel's place, in the processor's privileged mode. It says
/// how far it is by writing the bytes of [`ProbeStep`], to a port or to an address without RAM: several
/// times START, IDLE, and after a loop LOOPED; then, after what [`Self::last_part`] names, DONE.
#[derive(Debug, Clone, Copy)]
pub struct ProbeProgram {
    /// Its machine code, which runs at any address.
    pub code: &'static [u8],
    /// How it is entered.
    pub protocol: Protocol,
    /// How often its loop goes round.
    pub iterations: u32,
    /// The instructions between its loops and its end, for a message.
    pub last_part: &'static str,
}

/// What a [`ProbeProgram`] writes.
#[derive(Debug)]
pub enum ProbeStep {}

impl ProbeStep {
    /// Next comes nothing but IDLE.
    pub const START: u8 = 1;
    /// Nothing was done since START. Next comes the loop.
    pub const IDLE: u8 = 2;
    /// The loop was done since IDLE.
    pub const LOOPED: u8 = 3;
    /// All is done.
    pub const DONE: u8 = 4;
}

/// What a thread does before anything else.
pub type ThreadBegin = Arc<dyn Fn() + Send + Sync>;

/// An interrupt chip that exists in KVM.
pub trait KvmIrqChip: Send + Sync {
    /// Finishes the chip after all vCPUs exist.
    ///
    /// # Errors
    /// The failed ioctl.
    fn activate(&self, vm: &VmFd) -> Result<(), KvmError>;

    /// Each thread that the chip makes from now on calls `begin` first: it gives up what it does not need. Called once,
    /// before the first [`Self::connect`]; a chip that makes no threads does nothing.
    fn begin_threads_with(&self, begin: ThreadBegin) {
        let _ = begin;
    }

    /// Makes each write to `event` an edge on a line, for as long as the chip is there.
    ///
    /// # Errors
    /// The failed ioctl.
    fn connect(&self, vm: &Arc<VmFd>, event: &EventFd, gsi: Gsi) -> Result<(), KvmError> {
        vm.register_irqfd(event, gsi)
            .map_err(KvmError::of("KVM_IRQFD"))
    }

    /// Ends the threads that the chip has, until [`Self::unpark`]. No device raises a line meanwhile.
    fn park(&self) {}

    /// The chip has its threads again.
    ///
    /// # Errors
    /// When the host refuses one. It may be tried again.
    fn unpark(&self, vm: &Arc<VmFd>) -> io::Result<()> {
        let _ = vm;
        Ok(())
    }
}
