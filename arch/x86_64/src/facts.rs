//! The facts about a host.

use serde::{Deserialize, Serialize};

use crate::cpuid::CpuidEntry;

/// The facts about an x86_64 host that decide what its machines look like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct X86_64 {
    /// What KVM can show of the processor (KVM_GET_SUPPORTED_CPUID).
    pub(crate) cpuid: Vec<CpuidEntry>,
    /// The most vCPUs that KVM allows.
    pub(crate) max_vcpus: u32,
    /// Physical address bits of a guest.
    pub(crate) address_bits: u8,
    /// Whether KVM can have local APICs alone (KVM_CAP_SPLIT_IRQCHIP).
    #[serde(default = "yes")]
    pub(crate) split_chip: bool,
    /// Whether KVM can have all of a PC's interrupt controllers and its interval timer (KVM_CAP_PIT2).
    #[serde(default = "yes")]
    pub(crate) full_chip: bool,
    /// Whether KVM has APIC ids from 255 on, and messages to them (KVM_CAP_X2APIC_API).
    #[serde(default = "yes")]
    pub(crate) wide_ids: bool,
    /// The model-specific registers that KVM saves and restores (KVM_GET_MSR_INDEX_LIST).
    #[serde(default)]
    pub(crate) msrs: Vec<u32>,
}

/// Facts from before a field was there.
fn yes() -> bool {
    true
}

/// The CPUID leaf with the address sizes; EAX bits 7:0 are the physical ones.
const ADDRESS_SIZES: u32 = 0x8000_0008;
/// The physical address bits of a processor without that leaf (Intel SDM volume 3, 4.1.4).
const DEFAULT_ADDRESS_BITS: u8 = 36;

/// Physical address bits of a guest with these leaves.
pub(crate) fn address_bits(cpuid: &[CpuidEntry]) -> u8 {
    let sizes = cpuid.iter().find(|entry| entry.function == ADDRESS_SIZES);
    sizes.map_or(DEFAULT_ADDRESS_BITS, |entry| entry.eax.to_le_bytes()[0])
}

impl X86_64 {
    /// The facts of a host.
    #[must_use]
    pub fn new(cpuid: Vec<CpuidEntry>, max_vcpus: u32) -> Self {
        let address_bits = address_bits(&cpuid);
        Self {
            cpuid,
            max_vcpus,
            address_bits,
            split_chip: true,
            full_chip: true,
            wide_ids: true,
            msrs: Vec::new(),
        }
    }

    /// The same host, with what its KVM has of the interrupt controllers: local APICs alone, and all of a
    /// PC's with its interval timer.
    #[must_use]
    pub fn with_chips(mut self, split: bool, full: bool) -> Self {
        (self.split_chip, self.full_chip) = (split, full);
        self
    }

    /// The same host, with or without APIC ids from 255 on.
    #[must_use]
    pub fn with_wide_ids(mut self, wide_ids: bool) -> Self {
        self.wide_ids = wide_ids;
        self
    }

    /// The same host, with the model-specific registers that its KVM saves and restores.
    #[must_use]
    pub fn with_msrs(mut self, msrs: Vec<u32>) -> Self {
        self.msrs = msrs;
        self
    }

    /// Shows its machines another processor.
    pub(crate) fn promise_cpuid(&mut self, cpuid: Vec<CpuidEntry>) {
        self.address_bits = address_bits(&cpuid);
        self.cpuid = cpuid;
    }

    /// Whether there can be machines with more than [`crate::map::NARROW_VCPUS`] vCPUs.
    pub(crate) fn has_wide_machines(&self) -> bool {
        self.split_chip && self.wide_ids
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
