//! The riscv64 backend.
//!
//! [`Riscv64`] holds the host's facts and plans machines from them on any host; `kvm` applies the
//! plans on a riscv64 host and is the only module that depends on it.

pub mod aia;
mod boot;
pub mod fdt;
pub mod isa;
pub mod layout;
pub mod load;
pub mod registers;

#[cfg(target_arch = "riscv64")]
pub mod kvm;

use arch::kernel::KernelHeader;
use arch::{
    BootError, BootInfo, BootRequest, GuestRam, LoadedKernel, MachineConfig, MachinePlan,
    PlanError, Platform, VcpuId,
};
use serde::{Deserialize, Serialize};

use crate::aia::Aia;
use crate::registers::VcpuSetup;

/// The facts about a riscv64 host that decide what its machines look like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Riscv64 {
    /// Bits of the largest guest physical address (KVM_CAP_VM_GPA_BITS).
    pub gpa_bits: u8,
    /// The most vCPUs that KVM allows.
    pub max_vcpus: u32,
    /// Ticks of the time counter in a second.
    pub timebase: u32,
    /// The vCPUs' extensions, by the names of the device tree binding, in the order of [`isa::ALL`].
    pub extensions: Vec<String>,
    /// The widest translation, as the MODE field of `satp` has it (Privileged Architecture, 10.1.11).
    pub satp_mode: u8,
    /// Bytes that an instruction of Zicbom, one of Zicboz and one of Zicbop concerns; 0 without.
    pub cache_blocks: [u32; 3],
    /// Interrupt identities of each vCPU's message controller: one less than a multiple of 64.
    pub identities: u32,
}

impl Riscv64 {
    /// The facts of an invented, typical host: Sv48, the interrupt architecture, vectors.
    #[must_use]
    pub fn typical() -> Self {
        let names = [
            "i", "m", "a", "f", "d", "c", "v", "zba", "zbb", "zbs", "zicbom", "zicboz", "zicntr",
            "zicsr", "zifencei", "zihpm", "ssaia", "sstc", "svinval", "svnapot", "svpbmt",
        ];
        Self {
            gpa_bits: 50,
            max_vcpus: 512,
            timebase: 10_000_000,
            extensions: names.map(str::to_owned).to_vec(),
            satp_mode: 9,
            cache_blocks: [64, 64, 0],
            identities: 255,
        }
    }
}

impl Platform for Riscv64 {
    type IrqChip = Aia;
    type VcpuSetup = VcpuSetup;

    fn setup_memory_layout(&self, config: &MachineConfig) -> Result<MachinePlan, PlanError> {
        layout::plan(self, config)
    }

    fn place_kernel(
        &self,
        header: &KernelHeader,
        plan: &MachinePlan,
    ) -> Result<LoadedKernel, BootError> {
        load::place(header, plan.kernel_window)
    }

    fn irq_chip(&self, plan: &MachinePlan) -> Result<Self::IrqChip, PlanError> {
        Ok(Aia::new(plan.vcpus, self.identities))
    }

    fn build_boot_info(
        &self,
        request: &BootRequest<'_, Self>,
        ram: &GuestRam,
    ) -> Result<BootInfo, BootError> {
        boot::build(self, request, ram)
    }

    fn configure_vcpu(
        &self,
        id: VcpuId,
        _plan: &MachinePlan,
        boot: Option<&BootInfo>,
    ) -> Result<Self::VcpuSetup, PlanError> {
        Ok(registers::vcpu_setup(id, boot))
    }
}
