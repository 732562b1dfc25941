//! The guest's memory map, in the vocabulary that both boot protocols share (E820 types).

use arch::{AddressRange, MachinePlan};

/// What a range of guest physical addresses is (ACPI 6.5, 15.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Type {
    /// Free RAM.
    Ram = 1,
    /// Nothing the guest may allocate.
    Reserved = 2,
}

/// One entry of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820Entry {
    /// Which addresses.
    pub range: AddressRange,
    /// What they are.
    pub kind: E820Type,
}

/// The memory map of a plan: RAM without the reserved ranges, and the reserved ranges, among them
/// the configuration space of PCI, which Linux uses only where firmware reserves it. Ascending, not
/// overlapping, neighbours of one kind merged.
#[must_use]
pub fn e820(plan: &MachinePlan) -> Vec<E820Entry> {
    let reserved = plan.reserved.iter().map(|entry| entry.range);
    let mut holes: Vec<AddressRange> = reserved.chain(plan.pci.map(|pci| pci.ecam)).collect();
    holes.sort_unstable();
    let mut entries: Vec<E820Entry> = Vec::new();
    for ram in &plan.ram {
        let mut start = ram.base;
        for hole in holes.iter().filter(|hole| hole.overlaps(ram)) {
            push(&mut entries, start, hole.base, E820Type::Ram);
            start = start.max(hole.end());
        }
        push(&mut entries, start, ram.end(), E820Type::Ram);
    }
    for hole in &holes {
        push(&mut entries, hole.base, hole.end(), E820Type::Reserved);
    }
    entries.sort_unstable_by_key(|entry| entry.range);
    entries.dedup_by(|next, previous| {
        let merge = next.kind == previous.kind && next.range.base <= previous.range.end();
        if merge {
            let end = previous.range.end().max(next.range.end());
            previous.range.len = end.saturating_sub(previous.range.base);
        }
        merge
    });
    entries
}

fn push(entries: &mut Vec<E820Entry>, start: u64, end: u64, kind: E820Type) {
    if let Some(len) = end.checked_sub(start).filter(|&len| len > 0) {
        entries.push(E820Entry {
            range: AddressRange::new(start, len),
            kind,
        });
    }
}

#[cfg(test)]
mod tests {
    use arch::{Cmdline, GuestKernel, Lean, MachineConfig, Platform, Transport};

    use super::*;
    use crate::facts::X86_64;
    use crate::map;

    fn map(memory: u64) -> Vec<(u64, u64, E820Type)> {
        map_with(memory, Transport::Mmio)
    }

    fn map_with(memory: u64, transport: Transport) -> Vec<(u64, u64, E820Type)> {
        let config = MachineConfig {
            lean: Lean::Off,
            kernel: GuestKernel::Unknown,
            vmgenid: true,
            own_window: 0,
            keyboard: false,
            announce_virtio: false,
            memory,
            vcpus: 1,
            cmdline: Cmdline::default(),
            serial: true,
            virtio: Vec::new(),
            transport,
        };
        let plan = X86_64::typical().setup_memory_layout(&config).unwrap();
        e820(&plan)
            .iter()
            .map(|entry| (entry.range.base, entry.range.end(), entry.kind))
            .collect()
    }

    #[test]
    fn a_small_machine_has_conventional_memory_firmware_area_and_high_memory() {
        let map = map(128 << 20);
        assert_eq!(map[0], (0, 0x9_FC00, E820Type::Ram));
        assert_eq!(map[1], (0x9_FC00, 0x10_0000, E820Type::Reserved));
        assert_eq!(map[2], (0x10_0000, 128 << 20, E820Type::Ram));
        assert!(map[3..].iter().all(|entry| entry.2 == E820Type::Reserved));
        assert!(map[3..].iter().all(|entry| entry.0 >= map::HOLE.base));
    }

    #[test]
    fn the_configuration_space_of_pci_is_reserved() {
        let ecam = (0xE000_0000, 0xE010_0000, E820Type::Reserved);
        assert!(map_with(128 << 20, Transport::Pci).contains(&ecam));
        assert!(!map(128 << 20).contains(&ecam));
    }

    #[test]
    fn ram_above_the_hole_starts_at_4_gib() {
        let map = map(5 << 30);
        assert_eq!(map[2], (0x10_0000, 0xC000_0000, E820Type::Ram));
        assert_eq!(
            map.last(),
            Some(&(1 << 32, (1 << 32) + (2 << 30), E820Type::Ram))
        );
    }

    #[test]
    fn entries_ascend_without_overlap_and_cover_all_ram() {
        for memory in [16 << 20, 0xC000_0000, 0xC000_1000, 1 << 32, 3 << 40] {
            let map = map(memory);
            assert!(
                map.windows(2).all(|pair| pair[0].1 <= pair[1].0),
                "{map:x?}"
            );
            let free: u64 = map
                .iter()
                .filter(|entry| entry.2 == E820Type::Ram)
                .map(|entry| entry.1 - entry.0)
                .sum();
            assert_eq!(free, memory - (0x10_0000 - 0x9_FC00));
        }
    }
}
