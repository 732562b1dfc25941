//! The aarch64 backend.
//!
//! [`Aarch64`] holds the host's facts and plans machines from them on any host; `kvm` applies the
//! plans on an aarch64 host and is the only module that depends on it.

pub mod cache;
mod facts;
pub mod fdt;
pub mod gic;
pub mod gic_registers;
pub mod layout;
pub mod paging;
pub mod registers;
pub mod state;

#[cfg(target_arch = "aarch64")]
pub mod kvm;

use std::time::Duration;

use arch::kernel::KernelHeader;
use arch::{
    BootError, BootInfo, BootRequest, Difference, GuestRam, KernelPlacement, MachineConfig,
    MachinePlan, PlanError, Platform, VcpuId, device_tree, ticks,
};

pub use crate::facts::Aarch64;
use crate::gic::GicV3;
use crate::registers::VcpuSetup;

/// The longest command line: Linux' COMMAND_LINE_SIZE without the final zero.
const CMDLINE_SIZE: u64 = 2047;

impl Platform for Aarch64 {
    type IrqChip = GicV3;
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
        Ok(GicV3::new(plan.vcpus))
    }

    fn build_boot_info(
        &self,
        request: &BootRequest<'_, Self>,
        ram: &GuestRam,
    ) -> Result<BootInfo, BootError> {
        let tree = fdt::build(self, request)?;
        device_tree::hand_over(&tree, request, CMDLINE_SIZE, ram)
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
        let ticks = ticks(passed, self.counter_hz);
        vcpus.iter_mut().for_each(|vcpu| vcpu.count(ticks));
    }

    fn configure_vcpu(
        &self,
        _id: VcpuId,
        _plan: &MachinePlan,
        boot: Option<&BootInfo>,
    ) -> Result<Self::VcpuSetup, PlanError> {
        Ok(registers::vcpu_setup(self, boot))
    }

    fn configure_saved(
        &self,
        id: VcpuId,
        plan: &MachinePlan,
        state: &state::VcpuState,
    ) -> Result<Self::VcpuSetup, PlanError> {
        Ok(VcpuSetup {
            vector_lengths: state.vector_lengths().cloned(),
            ..self.configure_vcpu(id, plan, None)?
        })
    }
}
