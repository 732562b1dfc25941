//! The x86_64 backend.
//!
//! [`X86_64`] holds the host's facts and plans machines from them on any host; `kvm` applies the
//! plans on an x86_64 host and is the only module that depends on it.

pub mod acpi;
mod announce;
mod boot;
pub mod cpuid;
mod e820;
pub mod irqchip;
pub mod layout;
mod lean;
pub mod load;
pub mod mptable;
pub mod paging;
mod pvh;
pub mod registers;
mod zero_page;

#[cfg(target_arch = "x86_64")]
pub mod kvm;

use arch::kernel::KernelHeader;
use arch::{
    BootError, BootInfo, BootRequest, GuestRam, LoadedKernel, MachineConfig, MachinePlan,
    PlanError, Platform, VcpuId,
};
use serde::{Deserialize, Serialize};

pub use crate::boot::DEFAULT_CMDLINE_SIZE;
use crate::cpuid::CpuidEntry;
pub use crate::e820::{E820Entry, E820Type, e820};
use crate::irqchip::{IoApic, Keeper};
use crate::registers::{BOOT_FPU, BootRegisters, DeliveryMode, VcpuSetup};

/// The facts about an x86_64 host that decide what its machines look like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct X86_64 {
    /// What KVM can show of the processor (KVM_GET_SUPPORTED_CPUID).
    cpuid: Vec<CpuidEntry>,
    /// The most vCPUs that KVM allows.
    max_vcpus: u32,
    /// Physical address bits of a guest.
    address_bits: u8,
    /// Whether KVM can have local APICs alone (KVM_CAP_SPLIT_IRQCHIP).
    #[serde(default = "yes")]
    split_chip: bool,
    /// Whether KVM can have all of a PC's interrupt controllers and its interval timer (KVM_CAP_PIT2).
    #[serde(default = "yes")]
    full_chip: bool,
}

/// Facts from before a field was there.
fn yes() -> bool {
    true
}

/// The CPUID leaf with the address sizes; EAX bits 7:0 are the physical ones.
const ADDRESS_SIZES: u32 = 0x8000_0008;
/// The physical address bits of a processor without that leaf (Intel SDM volume 3, 4.1.4).
const DEFAULT_ADDRESS_BITS: u8 = 36;

impl X86_64 {
    /// The facts of a host.
    #[must_use]
    pub fn new(cpuid: Vec<CpuidEntry>, max_vcpus: u32) -> Self {
        let sizes = cpuid.iter().find(|entry| entry.function == ADDRESS_SIZES);
        let address_bits = sizes.map_or(DEFAULT_ADDRESS_BITS, |entry| entry.eax.to_le_bytes()[0]);
        Self {
            cpuid,
            max_vcpus,
            address_bits,
            split_chip: true,
            full_chip: true,
        }
    }

    /// The same host, with what its KVM has of the interrupt controllers: local APICs alone, and all of a
    /// PC's with its interval timer.
    #[must_use]
    pub fn with_chips(mut self, split: bool, full: bool) -> Self {
        (self.split_chip, self.full_chip) = (split, full);
        self
    }

    /// The facts of an invented, typical host with 46 physical address bits.
    #[must_use]
    pub fn typical() -> Self {
        let leaf = |function, eax, ebx, ecx, edx| CpuidEntry {
            function,
            index: 0,
            flags: 0,
            eax,
            ebx,
            ecx,
            edx,
        };
        let leaves = vec![
            // "GenuineIntel"
            leaf(0, 0xD, 0x756E_6547, 0x6C65_746E, 0x4965_6E69),
            leaf(1, 0x000A_0671, 0x0010_0800, 0x8120_2000, 0x0783_FBFF),
            leaf(0x8000_0000, 0x8000_0008, 0, 0, 0),
            leaf(0x8000_0001, 0, 0, 1, 0x2010_0800),
            leaf(ADDRESS_SIZES, 0x302E, 0, 0, 0),
        ];
        Self::new(leaves, 1024)
    }
}

impl Platform for X86_64 {
    type IrqChip = IoApic;
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
