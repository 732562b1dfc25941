//! The x86_64 backend.
//!
//! [`X86_64`] holds the host's facts and plans machines from them on any host; `kvm` applies the
//! plans on an x86_64 host and is the only module that depends on it.

pub mod acpi;
mod announce;
mod boot;
pub mod cpuid;
mod e820;
mod facts;
mod features;
mod handover;
pub mod irqchip;
pub mod layout;
mod lean;
pub mod load;
pub mod map;
pub mod mptable;
pub mod paging;
pub mod probe;
mod pvh;
pub mod registers;
pub mod state;
mod zero_page;

#[cfg(target_arch = "x86_64")]
pub mod kvm;

pub use crate::e820::{E820Entry, E820Type, e820};
pub use crate::facts::X86_64;
pub use crate::handover::DEFAULT_CMDLINE_SIZE;
use crate::irqchip::{IoApic, Keeper};
use crate::registers::{BOOT_FPU, BootRegisters, DeliveryMode, VcpuSetup};
use std::time::Duration;

use arch::kernel::KernelHeader;
use arch::{
    BootError, BootInfo, BootRequest, Difference, FeatureBits, GuestRam, KernelPlacement,
    MachineConfig, MachinePlan, PlanError, Platform, VcpuId,
};

impl Platform for X86_64 {
    type IrqChip = IoApic;
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
        load::place(header, plan.kernel_window)
    }

    fn irq_chip(&self, plan: &MachinePlan) -> Result<Self::IrqChip, PlanError> {
        let keeper = if plan.is_lean() {
            Keeper::Vmm
        } else {
            Keeper::Kvm
        };
        Ok(IoApic::new(plan.vcpus, keeper))
    }

    fn build_boot_info(
        &self,
        request: &BootRequest<'_, Self>,
        ram: &GuestRam,
    ) -> Result<BootInfo, BootError> {
        boot::build(request, ram)
    }

    fn show_features(&mut self, changes: &[FeatureBits]) -> Result<(), PlanError> {
        self.change_features(changes)
    }

    fn promise(&self) -> Option<state::Promise> {
        Some(state::Promise {
            cpuid: self.cpuid.clone(),
        })
    }

    fn keep(&mut self, promise: state::Promise) -> Vec<Difference> {
        let differences = promise.differences(&self.cpuid);
        self.promise_cpuid(promise.cpuid);
        differences
    }

    fn configure_saved(
        &self,
        id: VcpuId,
        plan: &MachinePlan,
        state: &state::VcpuState,
    ) -> Result<Self::VcpuSetup, PlanError> {
        Ok(VcpuSetup {
            msrs: state.msrs_before_loading(id),
            ..self.configure_vcpu(id, plan, None)?
        })
    }

    fn pass_time(
        &self,
        passed: Duration,
        clock: &mut state::ClockState,
        vcpus: &mut [state::VcpuState],
    ) {
        clock.pass(passed);
        vcpus.iter_mut().for_each(|vcpu| vcpu.pass(passed));
    }

    fn configure_vcpu(
        &self,
        id: VcpuId,
        plan: &MachinePlan,
        boot: Option<&BootInfo>,
    ) -> Result<Self::VcpuSetup, PlanError> {
        Ok(VcpuSetup {
            cpuid: cpuid::vcpu_leaves(&self.cpuid, id, plan.vcpus),
            msrs: registers::boot_msrs(),
            fpu: BOOT_FPU,
            lint0: DeliveryMode::ExtInt,
            lint1: DeliveryMode::Nmi,
            boot: boot.map(BootRegisters::new),
        })
    }
}
