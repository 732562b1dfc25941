//! CPUID as one vCPU sees it (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E).
//!
//! KVM_GET_SUPPORTED_CPUID describes the processor that the call happened to run on. The leaves
//! about identity and topology are made true for this machine: one package, one thread per core,
//! APIC id = vCPU number. The rest passes through.

use serde::{Deserialize, Serialize};

use crate::map::NARROW_VCPUS;

/// One leaf, or one subleaf of a leaf that has several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// The leaf, the input in EAX.
    pub function: u32,
    /// The subleaf, the input in ECX.
    pub index: u32,
    /// KVM_CPUID_FLAG_*: bit 0 says that `index` counts.
    pub flags: u32,
    /// Output.
    pub eax: u32,
    /// Output.
    pub ebx: u32,
    /// Output.
    pub ecx: u32,
    /// Output.
    pub edx: u32,
}

/// KVM_CPUID_FLAG_SIGNIFCANT_INDEX.
const INDEX_COUNTS: u32 = 1;
/// "AuthenticAMD" and "HygonGenuine".
const AMD_VENDORS: [[u8; 4]; 2] = [*b"Auth", *b"Hygo"];
/// Leaf 1 ECX.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// Leaf 6 EAX: the local APIC timer runs in every power state.
const ARAT: u32 = 1 << 2;
/// Leaf 0x8000_0001 ECX on AMD: EDX bit HTT means cores; leaf 0x8000_001E is there.
const CMP_LEGACY: u32 = 1 << 1;
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// Leaf 0x4000_0001 EAX: bits 11:5 of a message's address are bits 14:8 of its destination
/// (KVM_FEATURE_MSI_EXT_DEST_ID). KVM does not offer it by itself: it is the VMM that reads these bits.
const EXTENDED_DESTINATIONS: u32 = 1 << 15;
/// Level types of leaf 0xB.
const SMT_LEVEL: u32 = 1;
const CORE_LEVEL: u32 = 2;

/// The table for vCPU `id` of `vcpus`, from the host's.
#[must_use]
pub fn vcpu_leaves(host: &[CpuidEntry], id: u32, vcpus: u32) -> Vec<CpuidEntry> {
    // EBX of leaf 0 holds the first four letters of the vendor's name.
    let vendor = host.iter().find(|leaf| leaf.function == 0);
    let amd = vendor.is_some_and(|leaf| AMD_VENDORS.contains(&leaf.ebx.to_le_bytes()));
    let topology = Topology { id, vcpus, amd };
    let mut leaves: Vec<_> = host
        .iter()
        .filter(|leaf| !matches!(leaf.function, 0xb | 0x1f))
        .map(|leaf| topology.adjust(*leaf))
        .collect();
    let highest = host
        .iter()
        .find(|leaf| leaf.function == 0)
        .map_or(0, |leaf| leaf.eax);
    for function in [0xb, 0x1f] {
        if function <= highest && (function == 0xb || host.iter().any(|l| l.function == function)) {
            leaves.extend(topology.levels(function));
        }
    }
    leaves
}

/// Replaces the bits `shift..shift + width` of a register.
fn set(register: &mut u32, shift: u32, width: u32, value: u32) {
    let mask = u32::MAX.checked_shr(32 - width).unwrap_or(0);
    *register = (*register & !(mask << shift)) | ((value & mask) << shift);
}

#[derive(Debug, Clone, Copy)]
struct Topology {
    id: u32,
    vcpus: u32,
    /// The topology leaves are AMD's.
    amd: bool,
}

impl Topology {
    /// Bits of an APIC id that tell cores of the package apart.
    fn core_bits(self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }

    fn adjust(self, mut leaf: CpuidEntry) -> CpuidEntry {
        let last = self.vcpus.saturating_sub(1);
        match leaf.function {
            1 => {
                set(&mut leaf.ebx, 24, 8, self.id);
                set(&mut leaf.ebx, 16, 8, (1 << self.core_bits()).min(255));
                leaf.ecx |= X2APIC | TSC_DEADLINE | HYPERVISOR;
                set(
                    &mut leaf.edx,
                    HTT.trailing_zeros(),
                    1,
                    u32::from(self.vcpus > 1),
                );
            }
            // Deterministic caches: bits 14-25 of EAX count the ids that share the cache, from 0.
            // Levels 1 and 2 are a core's own, the last level is shared by all.
            4 | 0x8000_001d if leaf.eax & 0x1f != 0 => {
                let level = (leaf.eax >> 5) & 7;
                let sharing = if level >= 3 {
                    (1 << self.core_bits()) - 1
                } else {
                    0
                };
                set(&mut leaf.eax, 14, 12, sharing);
                if leaf.function == 4 {
                    set(&mut leaf.eax, 26, 6, (1u32 << self.core_bits()).min(64) - 1);
                }
            }
            // Power management belongs to the host; the guest's timer never stops.
            6 => {
                leaf.eax = ARAT;
                (leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0);
            }
            // No performance counters: nothing here sets them up or saves them.
            0xa => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
            0x4000_0001 if self.vcpus > NARROW_VCPUS => leaf.eax |= EXTENDED_DESTINATIONS,
            0x8000_0001 if leaf.ecx & TOPOLOGY_EXTENSIONS != 0 => {
                let several = u32::from(self.vcpus > 1);
                set(&mut leaf.ecx, CMP_LEGACY.trailing_zeros(), 1, several);
            }
            // AMD: number of cores from 0, and the bits of the APIC id that count them. Intel has
            // zero here.
            0x8000_0008 if self.amd => {
                set(&mut leaf.ecx, 0, 8, last.min(255));
                set(&mut leaf.ecx, 12, 4, self.core_bits());
            }
            0x8000_001e => {
                leaf.eax = self.id;
                // One thread per core; the core's number has 8 bits.
                leaf.ebx = self.id & 0xff;
                // One node, number 0.
                leaf.ecx = 0;
            }
            _ => {}
        }
        leaf
    }

    /// The subleaves of leaf 0xB or 0x1F: threads of a core, cores of the package, end.
    fn levels(self, function: u32) -> [CpuidEntry; 3] {
        let level = |index: u32, shift: u32, count: u32, kind: u32| CpuidEntry {
            function,
            index,
            flags: INDEX_COUNTS,
            eax: shift,
            ebx: count,
            ecx: (kind << 8) | index,
            edx: self.id,
        };
        [
            level(0, 0, 1, SMT_LEVEL),
            level(1, self.core_bits(), self.vcpus & 0xffff, CORE_LEVEL),
            level(2, 0, 0, 0),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> CpuidEntry {
        let [eax, ebx, ecx, edx] = registers;
        CpuidEntry {
            function,
            index,
            flags: 0,
            eax,
            ebx,
            ecx,
            edx,
        }
    }

    fn host() -> Vec<CpuidEntry> {
        vec![
            leaf(0, 0, [0x1f, u32::from_le_bytes(*b"Auth"), 2, 3]),
            leaf(1, 0, [0x0003_06a9, 0x5510_0800, 0, HTT]),
            leaf(4, 0, [0xfc00_4121, 1, 2, 3]),
            leaf(4, 3, [0xfc03_c163, 1, 2, 3]),
            leaf(6, 0, [0xff, 2, 9, 1]),
            leaf(7, 0, [1, 2, 3, 4]),
            leaf(0xa, 0, [7, 7, 7, 7]),
            leaf(0xb, 0, [1, 2, 0x100, 99]),
            leaf(0x1f, 0, [1, 2, 0x100, 99]),
            leaf(0x4000_0000, 0, [0x4000_0001, 5, 6, 7]),
            leaf(0x4000_0001, 0, [0x0100_7afb, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0, 0, TOPOLOGY_EXTENSIONS | CMP_LEGACY, 0]),
            leaf(0x8000_0008, 0, [0x3030, 5, 0x700f, 0]),
            leaf(0x8000_001e, 0, [77, 0x177, 0x201, 0]),
        ]
    }

    fn find(leaves: &[CpuidEntry], function: u32, index: u32) -> CpuidEntry {
        let mut found = leaves
            .iter()
            .filter(|leaf| (leaf.function, leaf.index) == (function, index));
        let leaf = *found.next().unwrap();
        assert!(found.next().is_none(), "twice: {leaf:?}");
        leaf
    }

    #[test]
    fn every_leaf_that_names_the_vcpu_names_the_same_one() {
        for (id, vcpus) in [(0, 1), (1, 2), (2, 3), (7, 8), (200, 254)] {
            let leaves = vcpu_leaves(&host(), id, vcpus);
            assert_eq!(find(&leaves, 1, 0).ebx >> 24, id);
            assert_eq!(find(&leaves, 0xb, 0).edx, id);
            assert_eq!(find(&leaves, 0x1f, 1).edx, id);
            assert_eq!(find(&leaves, 0x8000_001e, 0).eax, id);
        }
    }

    #[test]
    fn core_counts_agree_and_ids_have_room() {
        for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (254, 8)] {
            let leaves = vcpu_leaves(&host(), 0, vcpus);
            let core = find(&leaves, 0xb, 1);
            assert_eq!((core.eax, core.ebx, core.ecx), (bits, vcpus, 0x201));
            assert_eq!(find(&leaves, 0xb, 2).ebx, 0);
            let sizes = find(&leaves, 0x8000_0008, 0).ecx;
            assert_eq!((sizes & 0xff, (sizes >> 12) & 0xf), (vcpus - 1, bits));
            assert_eq!(find(&leaves, 1, 0).edx & HTT != 0, vcpus > 1);
            assert_eq!(
                find(&leaves, 0x8000_0001, 0).ecx & CMP_LEGACY != 0,
                vcpus > 1
            );
        }
    }

    #[test]
    fn the_amd_core_count_is_not_made_up_for_other_vendors() {
        let mut host = host();
        host[0].ebx = u32::from_le_bytes(*b"Genu");
        let sizes = find(&vcpu_leaves(&host, 0, 8), 0x8000_0008, 0);
        assert_eq!(sizes, find(&host, 0x8000_0008, 0));
    }

    #[test]
    fn the_last_level_cache_is_shared_and_the_first_is_not() {
        let leaves = vcpu_leaves(&host(), 0, 6);
        let sharing = |index| (find(&leaves, 4, index).eax >> 14) & 0xfff;
        assert_eq!((sharing(0), sharing(3)), (0, 7));
        assert_eq!(find(&leaves, 4, 0).eax >> 26, 7);
    }

    #[test]
    fn the_guest_knows_that_it_is_one_and_has_its_timers() {
        let ecx = find(&vcpu_leaves(&host(), 0, 1), 1, 0).ecx;
        assert_eq!(
            ecx & (HYPERVISOR | TSC_DEADLINE | X2APIC),
            HYPERVISOR | TSC_DEADLINE | X2APIC
        );
    }

    #[test]
    fn other_leaves_pass_through() {
        let leaves = vcpu_leaves(&host(), 3, 4);
        for function in [0, 7, 0x4000_0000, 0x4000_0001] {
            assert_eq!(find(&leaves, function, 0), find(&host(), function, 0));
        }
        assert_eq!(find(&leaves, 0xa, 0), leaf(0xa, 0, [0; 4]));
    }

    #[test]
    fn r69_more_vcpus_than_8_bits_can_name_are_told_of_wider_destinations() {
        for (vcpus, offered) in [(255, false), (256, true), (1024, true)] {
            let leaves = vcpu_leaves(&host(), vcpus - 1, vcpus);
            let features = find(&leaves, 0x4000_0001, 0).eax;
            assert_eq!(features & EXTENDED_DESTINATIONS != 0, offered, "{vcpus}");
            assert_eq!(find(&leaves, 0xb, 0).edx, vcpus - 1);
        }
    }

    #[test]
    fn a_host_without_the_newest_leaf_does_not_get_it() {
        let mut host = host();
        host.retain(|leaf| leaf.function != 0x1f);
        assert!(
            vcpu_leaves(&host, 0, 2)
                .iter()
                .all(|leaf| leaf.function != 0x1f)
        );
    }
}
