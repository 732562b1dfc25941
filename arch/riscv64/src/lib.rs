//! The riscv64 backend.
//!
//! [`Riscv64`] holds the host's facts and plans machines from them on any host; `kvm` applies the
//! plans on a riscv64 host and is the only module that depends on it.

pub mod aia;
mod facts;
pub mod fdt;
pub mod isa;
pub mod layout;
pub mod registers;

#[cfg(target_arch = "riscv64")]
pub mod kvm;

use arch::kernel::KernelHeader;
use arch::{
    BootError, BootInfo, BootRequest, GuestRam, KernelPlacement, MachineConfig, MachinePlan,
    PlanError, Platform, Unsaved, VcpuId, device_tree,
};

use crate::aia::Aia;
pub use crate::facts::Riscv64;
use crate::registers::{BOOT_HART, VcpuSetup};

/// The longest command line: Linux' COMMAND_LINE_SIZE without the final zero.
const CMDLINE_SIZE: u64 = 1023;

impl Platform for Riscv64 {
    type IrqChip = Aia;
    type VcpuSetup = VcpuSetup;
    // This version cannot save machines of this architecture.
    type Promise = Unsaved;
    type VcpuState = Unsaved;
    type ChipState = Unsaved;
    type ClockState = Unsaved;

    fn setup_memory_layout(&self, config: &MachineConfig) -> Result<MachinePlan, PlanError> {
        layout::plan(self, config)
    }

    fn place_kernel(
        &self,
        header: &KernelHeader,
        plan: &MachinePlan,
    ) -> Result<KernelPlacement, BootError> {
        device_tree::place_kernel(header, plan)
    }

    fn irq_chip(&self, plan: &MachinePlan) -> Result<Self::IrqChip, PlanError> {
        Ok(Aia::new(plan.vcpus, self.identities))
    }

    fn build_boot_info(
        &self,
        request: &BootRequest<'_, Self>,
        ram: &GuestRam,
    ) -> Result<BootInfo, BootError> {
        let tree = fdt::build(self, request)?;
        let boot = device_tree::hand_over(&tree, request, CMDLINE_SIZE, ram)?;
        let [tree, ..] = boot.arguments;
        Ok(BootInfo {
            arguments: [BOOT_HART, tree, 0, 0],
            ..boot
        })
    }

    fn configure_vcpu(
        &self,
        _id: VcpuId,
        _plan: &MachinePlan,
        boot: Option<&BootInfo>,
    ) -> Result<Self::VcpuSetup, PlanError> {
        Ok(registers::vcpu_setup(boot))
    }
}
