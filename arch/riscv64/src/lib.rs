//! The riscv64 backend.
//!
//! [`Riscv64`] holds the host's facts and plans machines from them on any host; `kvm` applies the
//! plans on a riscv64 host and is the only module that depends on it.

pub mod aia;
pub mod aia_registers;
mod facts;
pub mod fdt;
pub mod isa;
pub mod layout;
pub mod registers;
pub mod state;

#[cfg(target_arch = "riscv64")]
pub mod kvm;

use std::time::Duration;

use arch::kernel::KernelHeader;
use arch::{
    BootError, BootInfo, BootRequest, Difference, GuestRam, KernelPlacement, MachineConfig,
    MachinePlan, PlanError, Platform, VcpuId, device_tree, ticks,
};

use crate::aia::Aia;
pub use crate::facts::Riscv64;
use crate::registers::{BOOT_HART, VcpuSetup};

/// The longest command line: Linux' COMMAND_LINE_SIZE without the final zero.
const CMDLINE_SIZE: u64 = 1023;

impl Platform for Riscv64 {
    type IrqChip = Aia;
    type VcpuSetup = VcpuSetup;
    type Promise = state::Promise;
    type VcpuState = state::VcpuState;
    type ChipState = state::ChipState;
    type ClockState = state::ClockState;

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

    fn promise(&self) -> Option<state::Promise> {
        Some(state::Promise::of(self))
    }

    fn keep(&mut self, promise: state::Promise) -> Vec<Difference> {
        let differences = promise.differences(self);
        promise.limit(self);
        differences
    }

    fn pass_time(
        &self,
        passed: Duration,
        _clock: &mut state::ClockState,
        vcpus: &mut [state::VcpuState],
    ) {
        let ticks = ticks(passed, self.timebase.into());
        vcpus.iter_mut().for_each(|vcpu| vcpu.count(ticks));
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
