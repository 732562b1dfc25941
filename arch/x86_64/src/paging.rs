//! The boot vCPU's page tables, and the walk of a guest's page tables for crash reports.
//!
//! The tables map the first 4 GiB one to one with 2 MiB pages; 1 GiB pages are not on every
//! processor (Intel SDM volume 3, 4.5).

use arch::{BootError, GuestRam, Placed};
use vm_memory::{Bytes, GuestAddress};

use crate::handover::write;
use crate::map::{PAGE_SIZE, PAGE_TABLES};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const PAGE_SIZE_FLAG: u64 = 1 << 7;
/// Address bits of an entry.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
const LARGE_PAGE: u64 = 2 << 20;
const DIRECTORIES: u64 = 4;
const ENTRIES: u64 = 512;

/// Physical address of the PML4, the value of CR3.
pub const PML4: u64 = PAGE_TABLES.base;
const PDPT: u64 = PML4 + PAGE_SIZE;
const DIRECTORY: u64 = PDPT + PAGE_SIZE;

/// CR0.PG: paging.
const CR0_PG: u64 = 1 << 31;
/// CR4.LA57: five levels.
const CR4_LA57: u64 = 1 << 12;
/// EFER.LMA: long mode is active.
const EFER_LMA: u64 = 1 << 10;

/// Writes the identity map.
///
/// # Errors
/// When guest memory cannot be written.
pub fn write_identity_map(ram: &GuestRam) -> Result<Placed, BootError> {
    let pml4 = std::iter::once(PDPT | PRESENT | WRITABLE);
    let pdpt = (0..DIRECTORIES).map(|i| (DIRECTORY + i * PAGE_SIZE) | PRESENT | WRITABLE);
    let pages =
        (0..DIRECTORIES * ENTRIES).map(|i| (i * LARGE_PAGE) | PRESENT | WRITABLE | PAGE_SIZE_FLAG);
    let mut tables = Vec::new();
    table(&mut tables, pml4);
    table(&mut tables, pdpt);
    table(&mut tables, pages);
    write(ram, "page tables", PAGE_TABLES, &tables)
}

/// Appends entries, zero-filled to whole pages.
fn table(tables: &mut Vec<u8>, entries: impl Iterator<Item = u64>) {
    tables.extend(entries.flat_map(u64::to_le_bytes));
    let page = usize::try_from(PAGE_SIZE).unwrap_or(tables.len());
    tables.resize(tables.len().next_multiple_of(page), 0);
}

/// What decides how a vCPU translates linear addresses.
#[derive(Debug, Clone, Copy)]
pub struct PagingState {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
}

/// Translates a linear address to a physical one; `None` when it is not mapped or the mode is one that no boot
/// protocol here uses (32-bit paging).
#[must_use]
pub fn translate(ram: &GuestRam, state: PagingState, linear: u64) -> Option<u64> {
    if state.cr0 & CR0_PG == 0 {
        return Some(linear);
    }
    if state.efer & EFER_LMA == 0 {
        return None;
    }
    let mut table = state.cr3 & ADDRESS;
    let top = if state.cr4 & CR4_LA57 == 0 { 3 } else { 4 };
    for level in (0..=top).rev() {
        let shift = 12 + 9 * level;
        let index = (linear >> shift) & (ENTRIES - 1);
        let entry: u64 = ram.read_obj(GuestAddress(table + index * 8)).ok()?;
        if entry & PRESENT == 0 {
            return None;
        }
        let large = matches!(level, 1 | 2) && entry & PAGE_SIZE_FLAG != 0;
        if level == 0 || large {
            let offset = (1 << shift) - 1;
            return Some((entry & ADDRESS & !offset) | (linear & offset));
        }
        table = entry & ADDRESS;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG_MODE: PagingState = PagingState {
        cr0: CR0_PG | 1,
        cr3: PML4,
        cr4: 1 << 5,
        efer: 0x500,
    };

    fn ram() -> GuestRam {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_identity_map(&ram).unwrap();
        ram
    }

    #[test]
    fn the_first_4_gib_are_mapped_one_to_one_and_nothing_else_is() {
        let ram = ram();
        for address in [
            0,
            0x7000,
            0x1F_FFFF,
            0x20_0000,
            0xC000_0000,
            0xFEE0_0000,
            0xFFFF_FFFF,
        ] {
            assert_eq!(translate(&ram, LONG_MODE, address), Some(address));
        }
        for address in [1 << 32, 1 << 39, 0xFFFF_FFFF_8000_0000] {
            assert_eq!(translate(&ram, LONG_MODE, address), None);
        }
    }

    #[test]
    fn without_paging_linear_is_physical() {
        let state = PagingState {
            cr0: 1,
            cr3: 0,
            cr4: 0,
            efer: 0,
        };
        assert_eq!(translate(&ram(), state, 0x1234), Some(0x1234));
    }

    #[test]
    fn hostile_page_tables_end_the_walk() {
        let state = PagingState {
            cr3: u64::MAX,
            cr4: u64::MAX,
            ..LONG_MODE
        };
        assert_eq!(translate(&ram(), state, u64::MAX), None);
    }

    #[test]
    fn the_tables_fill_their_range_exactly() {
        assert_eq!(write_identity_map(&ram()).unwrap().range, PAGE_TABLES);
    }
}
