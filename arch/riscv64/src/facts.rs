//! The facts about a host.

use serde::{Deserialize, Serialize};

/// The facts about a riscv64 host that decide what its machines look like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Riscv64 {
    /// Bits of the largest guest physical address (KVM_CAP_VM_GPA_BITS).
    pub gpa_bits: u8,
    /// The most vCPUs that KVM allows.
    pub max_vcpus: u32,
    /// Ticks of the time counter in a second.
    pub timebase: u32,
    /// The vCPUs' extensions, by the names of the device tree binding, in the order of [`crate::isa::ALL`].
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
