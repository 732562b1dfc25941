//! The pure half of a backend.

use std::fmt::Debug;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use vm_memory::GuestMemoryMmap;

use crate::kernel::{KernelHeader, Protocol};
use crate::{
    AddressRange, BootError, ConfigPath, Difference, FeatureBits, Gsi, MachineConfig, MachinePlan,
    PlanError,
};

/// Guest RAM as the backends see it.
pub type GuestRam = GuestMemoryMmap<()>;

/// The number of a vCPU; 0 is the one that boots.
pub type VcpuId = u32;

/// What the core may ask of an interrupt chip that does not exist yet.
pub trait IrqModel: Debug + Clone + PartialEq + Send + Sync {
    /// The GSIs that devices may raise.
    fn lines(&self) -> std::ops::Range<Gsi>;

    /// Where KVM routes every line of a new chip, or nothing where a device of the plan does
    /// ([`DeviceKind::IoApic`](crate::DeviceKind::IoApic)). KVM_SET_GSI_ROUTING replaces the whole
    /// table, so whoever adds messages to it repeats these.
    fn wired_routes(&self) -> Vec<WiredRoute>;

    /// The address that KVM_SET_GSI_ROUTING takes for a message (MSI) that the guest sends to
    /// `address`, where the two differ. The message's data is always the guest's.
    fn message_address(&self, address: u64) -> u64 {
        address
    }
}

/// A GSI that is wired to a pin of an interrupt chip in the kernel. One GSI may have several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WiredRoute {
    /// The line.
    pub gsi: Gsi,
    /// The chip, as KVM_SET_GSI_ROUTING numbers those of the architecture.
    pub chip: u32,
    /// The chip's pin.
    pub pin: u32,
}

/// Where a kernel will lie in guest memory, and how it is entered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelPlacement {
    /// Guest physical address of the first instruction, for the entry in use.
    pub entry: u64,
    /// Everything the kernel may touch before it reads the memory map (BSS included).
    pub range: AddressRange,
    /// The highest address an initrd may end at (exclusive), where the kernel names one.
    pub initrd_limit: Option<u64>,
    /// How the kernel is entered.
    pub protocol: Protocol,
    /// The start of the image as far as the boot protocol passes it on to the kernel (the bzImage
    /// setup header); empty otherwise.
    pub setup_header: Vec<u8>,
}

/// What [`Platform::build_boot_info`] works from.
#[derive(Debug)]
pub struct BootRequest<'a, P: Platform> {
    /// The machine.
    pub plan: &'a MachinePlan,
    /// Its interrupt chip.
    pub irq_chip: &'a P::IrqChip,
    /// The kernel, already loaded.
    pub kernel: &'a KernelPlacement,
    /// The initrd, already loaded.
    pub initrd: Option<AddressRange>,
    /// Random bytes for the kernel's own generator, where the boot protocol passes some.
    pub seed: &'a [u8; SEED],
}

/// Bytes of [`BootRequest::seed`].
pub const SEED: usize = 64;

/// A block of boot information written to guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// What it is.
    pub name: &'static str,
    /// Where it is.
    pub range: AddressRange,
}

/// The most arguments of a boot protocol.
pub const ARGUMENTS: usize = 4;

/// Where the boot vCPU starts, and what it finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootInfo {
    /// The first instruction.
    pub entry: u64,
    /// What the boot protocol passes in registers (the address of zero page, start_info or device tree; the
    /// number of the vCPU), in its order. The rest are zeros.
    pub arguments: [u64; ARGUMENTS],
    /// How the kernel is entered.
    pub protocol: Protocol,
    /// Every block that was written.
    pub placed: Vec<Placed>,
}

/// The pure half of a backend: from host facts and configuration to data.
///
/// `self` holds the probed facts, so a test writes them down. No method may read host state, and
/// equal input gives equal output.
pub trait Platform: Debug + Send + Sync + Sized + 'static {
    /// The interrupt chip, as a model.
    type IrqChip: IrqModel;
    /// Every register write that one vCPU needs, as data.
    type VcpuSetup: Debug + Clone + PartialEq;
    /// What of the host a machine keeps to when it is restored on another one.
    type Promise: Debug + Clone + PartialEq + Serialize + DeserializeOwned + Send;
    /// What of a vCPU goes on after it was saved and restored.
    type VcpuState: Debug + Clone + PartialEq + Serialize + DeserializeOwned + Send;
    /// Likewise, of the interrupt chip.
    type ChipState: Debug + Clone + PartialEq + Serialize + DeserializeOwned + Send;
    /// Likewise, of the clock that the VM shares with its guest.
    type ClockState: Debug + Clone + PartialEq + Serialize + DeserializeOwned + Send;

    /// Lays out RAM, reserved ranges, devices and the command line.
    ///
    /// # Errors
    /// [`PlanError::Config`] names the field that the platform cannot satisfy.
    fn setup_memory_layout(&self, config: &MachineConfig) -> Result<MachinePlan, PlanError>;

    /// Decides where a kernel goes and how it is entered, before anything is copied.
    ///
    /// # Errors
    /// When it does not fit the plan's kernel window, is for another machine, or has no entry that
    /// the platform can use.
    fn place_kernel(
        &self,
        header: &KernelHeader,
        plan: &MachinePlan,
    ) -> Result<KernelPlacement, BootError>;

    /// Chooses the interrupt chip for a plan.
    ///
    /// # Errors
    /// When the host's facts offer none that serves the plan.
    fn irq_chip(&self, plan: &MachinePlan) -> Result<Self::IrqChip, PlanError>;

    /// Writes everything the kernel is told (tables, device tree, command line) to guest memory.
    ///
    /// The caller guarantees that `ram` covers `request.plan.ram` and that the kernel and initrd
    /// lie where the request says.
    ///
    /// # Errors
    /// When something does not fit, or guest memory cannot be written.
    fn build_boot_info(
        &self,
        request: &BootRequest<'_, Self>,
        ram: &GuestRam,
    ) -> Result<BootInfo, BootError>;

    /// Computes the state in which one vCPU starts. `boot` is given for vCPU 0 only; the others
    /// wait until the guest starts them.
    ///
    /// # Errors
    /// When the host's facts cannot serve the plan.
    fn configure_vcpu(
        &self,
        id: VcpuId,
        plan: &MachinePlan,
        boot: Option<&BootInfo>,
    ) -> Result<Self::VcpuSetup, PlanError>;

    /// Computes the state in which a vCPU waits for a saved one to be loaded.
    ///
    /// # Errors
    /// As [`Self::configure_vcpu`].
    fn configure_saved(
        &self,
        id: VcpuId,
        plan: &MachinePlan,
        state: &Self::VcpuState,
    ) -> Result<Self::VcpuSetup, PlanError> {
        let _ = state;
        self.configure_vcpu(id, plan, None)
    }

    /// Moves the time of a saved machine on, whose promise this platform keeps: its guest finds what it finds after a pause
    /// of so long. A state may say anything, and no time is too long.
    fn pass_time(
        &self,
        passed: Duration,
        clock: &mut Self::ClockState,
        vcpus: &mut [Self::VcpuState],
    );

    /// Changes what guests are told of their processor, for all machines that are planned from now on.
    ///
    /// # Errors
    /// Names the first change that cannot be: the platform has no such register, or the host lacks what it sets. Nothing
    /// is changed then.
    fn show_features(&mut self, changes: &[FeatureBits]) -> Result<(), PlanError> {
        match changes.first() {
            Some(change) => Err(refused_features(
                0,
                change,
                "this architecture has no such register",
                "leave it away",
            )),
            None => Ok(()),
        }
    }

    /// What machines of this host are promised and cannot do without. `None`: they cannot be saved.
    fn promise(&self) -> Option<Self::Promise> {
        None
    }

    /// Gives a machine that was saved what it was promised, instead of what this host would promise. What this host has
    /// not is the answer: the machine cannot go on here unless there is nothing.
    fn keep(&mut self, promise: Self::Promise) -> Vec<Difference> {
        let _ = promise;
        Vec::new()
    }
}

/// Why a guest's processor features cannot be these.
#[must_use]
pub fn refused_features(
    place: usize,
    change: &FeatureBits,
    cause: impl Into<String>,
    cure: &str,
) -> PlanError {
    PlanError::Config {
        field: ConfigPath::from("features").item(place),
        value: change.to_string(),
        cause: cause.into(),
        cure: cure.to_owned(),
    }
}

/// The pure half of any backend behind one interface, for tools that look at machines of every
/// architecture.
pub trait Planner: Debug {
    /// See [`Platform::setup_memory_layout`].
    ///
    /// # Errors
    /// As there.
    fn plan(&self, config: &MachineConfig) -> Result<MachinePlan, PlanError>;

    /// See [`Platform::place_kernel`].
    ///
    /// # Errors
    /// As there.
    fn kernel_place(
        &self,
        header: &KernelHeader,
        plan: &MachinePlan,
    ) -> Result<KernelPlacement, BootError>;

    /// Writes the boot information for a kernel and says what lies where; see
    /// [`Platform::build_boot_info`].
    ///
    /// # Errors
    /// As there, or when the plan has no interrupt chip.
    fn boot_info(
        &self,
        plan: &MachinePlan,
        kernel: &KernelPlacement,
        initrd: Option<AddressRange>,
        ram: &GuestRam,
    ) -> Result<BootInfo, BootError>;
}

impl<P: Platform> Planner for P {
    fn plan(&self, config: &MachineConfig) -> Result<MachinePlan, PlanError> {
        self.setup_memory_layout(config)
    }

    fn kernel_place(
        &self,
        header: &KernelHeader,
        plan: &MachinePlan,
    ) -> Result<KernelPlacement, BootError> {
        self.place_kernel(header, plan)
    }

    fn boot_info(
        &self,
        plan: &MachinePlan,
        kernel: &KernelPlacement,
        initrd: Option<AddressRange>,
        ram: &GuestRam,
    ) -> Result<BootInfo, BootError> {
        let irq_chip = self
            .irq_chip(plan)
            .map_err(|error| BootError::Kernel(error.to_string()))?;
        let request = BootRequest {
            plan,
            irq_chip: &irq_chip,
            kernel,
            initrd,
            seed: &[0; SEED],
        };
        self.build_boot_info(&request, ram)
    }
}
