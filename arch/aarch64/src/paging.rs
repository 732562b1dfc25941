//! Walks the guest's translation tables, for the crash report.
//!
//! Reads hostile memory: every walk is bounded by the number of levels, every read is checked.
//! Source: Arm Architecture Reference Manual (DDI 0487), D8 (VMSAv8-64).

use arch::GuestRam;
use vm_memory::{Bytes, GuestAddress};

/// The registers that a translation depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagingState {
    /// System control: bit 0 turns translation on.
    pub sctlr: u64,
    /// Translation control.
    pub tcr: u64,
    /// Tables of the lower half.
    pub ttbr0: u64,
    /// Tables of the upper half.
    pub ttbr1: u64,
}

/// Address bits of a descriptor or a table base register.
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// The last level of every walk.
const LAST_LEVEL: u32 = 3;

/// The guest physical address of a virtual one; `None` where the guest would take a fault, or has
/// tables this walk does not know (52-bit addresses).
#[must_use]
pub fn translate(ram: &GuestRam, state: PagingState, address: u64) -> Option<u64> {
    if state.sctlr & 1 == 0 {
        return Some(address);
    }
    let upper = address >> 63 == 1;
    // TG0 and TG1 encode the same sizes differently.
    let (base, unused_bits, granule) = if upper {
        let granule = match (state.tcr >> 30) & 3 {
            1 => 14,
            2 => 12,
            3 => 16,
            _ => return None,
        };
        (state.ttbr1, (state.tcr >> 16) & 0x3f, granule)
    } else {
        let granule = match (state.tcr >> 14) & 3 {
            0 => 12,
            1 => 16,
            2 => 14,
            _ => return None,
        };
        (state.ttbr0, state.tcr & 0x3f, granule)
    };
    let bits = 64u32.checked_sub(u32::try_from(unused_bits).ok()?)?;
    if !(25..=48).contains(&bits) {
        return None;
    }
    let stride = granule - 3;
    let levels = (bits - granule).div_ceil(stride);
    let mut table = base & ADDRESS;
    for level in 4 - levels..=LAST_LEVEL {
        let shift = granule + stride * (LAST_LEVEL - level);
        // The first table is smaller when the address has fewer bits.
        let width = stride.min(bits - shift);
        let index = (address >> shift) & ((1 << width) - 1);
        let descriptor: u64 = ram
            .read_obj(GuestAddress(table.checked_add(index * 8)?))
            .ok()?;
        let offset_mask = (1u64 << shift) - 1;
        match (descriptor & 3, level) {
            (3, LAST_LEVEL) | (1, 1..LAST_LEVEL) => {
                return Some(descriptor & ADDRESS & !offset_mask | address & offset_mask);
            }
            (3, _) => table = descriptor & ADDRESS,
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: PagingState = PagingState {
        sctlr: 1,
        // 48 bits below and above, 4 KiB granules.
        tcr: 16 | 16 << 16 | 2 << 30,
        ttbr0: 0x1000,
        ttbr1: 0x2000,
    };

    fn ram(descriptors: &[(u64, u64)]) -> GuestRam {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        for &(address, value) in descriptors {
            ram.write_obj(value, GuestAddress(address)).unwrap();
        }
        ram
    }

    #[test]
    fn without_translation_addresses_are_physical() {
        let off = PagingState { sctlr: 0, ..STATE };
        assert_eq!(translate(&ram(&[]), off, 0x1234), Some(0x1234));
    }

    #[test]
    fn pages_and_blocks_are_found_in_both_halves() {
        let ram = ram(&[
            (0x1000, 0x3003),      // level 0, entry 0: a table
            (0x3000, 0x4000_0701), // level 1, entry 0: a block of 1 GiB
            (0x3008, 0x4003),      // level 1, entry 1: a table
            (0x4000, 0x5003),      // level 2, entry 0: a table
            (0x5008, 0x6703),      // level 3, entry 1: a page
            (0x2ff8, 0x3003),      // the upper half's last entry
        ]);
        assert_eq!(translate(&ram, STATE, 0x12_3456), Some(0x4012_3456));
        assert_eq!(translate(&ram, STATE, 0x4000_1abc), Some(0x6abc));
        assert_eq!(translate(&ram, STATE, 0x4000_2000), None);
        let upper = 0xffff_ff80_0000_0000;
        assert_eq!(translate(&ram, STATE, upper + 0x42), Some(0x4000_0042));
    }

    #[test]
    fn hostile_tables_end_the_walk() {
        let looping = ram(&[(0x1000, 0x1003)]);
        assert_eq!(translate(&looping, STATE, 0), Some(0x1000));
        let beyond = ram(&[(0x1000, 0x0000_7fff_ffff_f003)]);
        assert_eq!(translate(&beyond, STATE, 0), None);
        for tcr in [0x3f, 0, u64::MAX] {
            let state = PagingState { tcr, ..STATE };
            assert_eq!(translate(&looping, state, 0), None, "{tcr:#x}");
        }
    }
}
