//! The facts about a host.

use arch::MachinePlan;
use serde::{Deserialize, Serialize};

use crate::cache::{self, Cache};

/// The facts about an aarch64 host that decide what its machines look like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aarch64 {
    /// Bits of the largest guest physical address (KVM_CAP_ARM_VM_IPA_SIZE).
    pub ipa_bits: u8,
    /// The most vCPUs that KVM allows.
    pub max_vcpus: u32,
    /// The guest may count events (KVM_CAP_ARM_PMU_V3).
    pub pmu: bool,
    /// The guest may use scalable vectors (KVM_CAP_ARM_SVE).
    pub sve: bool,
    /// The guest may authenticate pointers (KVM_CAP_ARM_PTRAUTH_ADDRESS and _GENERIC).
    pub pointer_authentication: bool,
    /// The frequency of the counter that all timers share (CNTFRQ_EL0), in Hz; 0 where it is not known.
    #[serde(default)]
    pub counter_hz: u64,
    /// The caches of processor 0, as far as they are known.
    #[serde(default)]
    pub caches: Vec<Cache>,
}

impl Aarch64 {
    /// The facts of an invented, typical host: everything, and 44 address bits.
    #[must_use]
    pub fn typical() -> Self {
        Self {
            ipa_bits: 44,
            max_vcpus: 512,
            pmu: true,
            sve: true,
            pointer_authentication: true,
            counter_hz: 1_000_000_000,
            caches: cache::typical(),
        }
    }

    /// The machine type of KVM_CREATE_VM: the number of guest physical address bits, or 0 for KVM's
    /// default of 40 where that is possible and enough.
    #[must_use]
    pub fn machine_type(&self, plan: &MachinePlan) -> u64 {
        let window = plan.pci.as_ref().and_then(|pci| pci.window64.as_ref());
        let last = plan.ram.iter().chain(window).map(|range| range.end() - 1);
        let last = last.max().unwrap_or(0);
        let needed = (u64::BITS - last.leading_zeros()).max(32);
        match u32::from(self.ipa_bits) {
            40.. if needed <= 40 => 0,
            limit => needed.min(limit).into(),
        }
    }
}
