//! The MP table (Intel MultiProcessor Specification 1.4), for kernels without ACPI.
//!
//! It lies where guests scan for it: the floating pointer at the start of [`map::MP_TABLE`],
//! the configuration table right after it.

use arch::BootError;

use crate::irqchip::{IoApic, Keeper};
use crate::map;

/// The most processors with an 8-bit APIC id, besides the I/O APIC and the broadcast id.
pub const MAX_VCPUS: u32 = 254;

/// Length of the floating pointer, in bytes.
const POINTER: u64 = 16;
/// Specification revision 1.4.
const SPEC: u8 = 4;
/// Version register of a local APIC that is integrated in the processor.
const APIC_VERSION: u8 = 0x14;
/// Version register of KVM's I/O APIC.
const IO_APIC_VERSION: u8 = 0x11;
const BUS_ISA: u8 = 0;

/// Entry types (section 4.3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
/// Interrupt types.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// CPU flags: usable; the one that boots.
const ENABLED: u8 = 1;
const BOOT: u8 = 2;
/// Every local APIC.
const ALL_APICS: u8 = 0xff;

/// Builds floating pointer and table; `None` for machines that the format cannot describe.
///
/// # Errors
/// When a length or address does not fit its field.
pub fn build(vcpus: u32, chip: &IoApic) -> Result<Option<Vec<u8>>, BootError> {
    if vcpus > MAX_VCPUS {
        return Ok(None);
    }
    let misfit = |_| BootError::Kernel("the MP table cannot describe this machine".to_owned());
    let table = table(vcpus, chip).map_err(misfit)?;
    let address = u32::try_from(map::MP_TABLE.base + POINTER).map_err(misfit)?;
    let mut pointer = b"_MP_".to_vec();
    pointer.extend(address.to_le_bytes());
    // Length in paragraphs, revision, checksum; feature bytes: a table is there, virtual wire mode.
    pointer.extend([1, SPEC, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut pointer, 10);
    Ok(Some([pointer, table].concat()))
}

fn table(vcpus: u32, chip: &IoApic) -> Result<Vec<u8>, std::num::TryFromIntError> {
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut entry = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = if id == 0 { ENABLED | BOOT } else { ENABLED };
        let mut processor = [0; 20];
        processor[..4].copy_from_slice(&[PROCESSOR, u8::try_from(id)?, APIC_VERSION, flags]);
        // Signature family 6; features FPU and APIC: what a guest needs before it reads CPUID.
        processor[4..12].copy_from_slice(&[0, 6, 0, 0, 0x01, 0x02, 0, 0]);
        entry(&processor);
    }
    entry(b"\x01\0ISA   ");
    debug_assert_eq!((BUS, BUS_ISA), (1, 0));
    let [a0, a1, a2, a3] = u32::try_from(chip.address)?.to_le_bytes();
    entry(&[IO_APIC, chip.id, IO_APIC_VERSION, ENABLED, a0, a1, a2, a3]);
    // ISA interrupts conform to their bus: edge, active high. Pin n serves IRQ n, as KVM routes it. So do
    // the pins of virtio devices beyond the 16 of a PC, which Linux takes as long as they are on this bus.
    for irq in 0..u8::try_from(chip.pins)? {
        entry(&[IO_INTERRUPT, INT, 0, 0, BUS_ISA, irq, chip.id, irq]);
    }
    if chip.keeper == Keeper::Kvm {
        // The PICs.
        entry(&[LOCAL_INTERRUPT, EXT_INT, 0, 0, BUS_ISA, 0, ALL_APICS, 0]);
    }
    entry(&[LOCAL_INTERRUPT, NMI, 0, 0, BUS_ISA, 0, ALL_APICS, 1]);

    const HEADER: usize = 44;
    let mut table = b"PCMP".to_vec();
    table.extend(u16::try_from(HEADER + entries.len())?.to_le_bytes());
    table.extend([SPEC, 0]);
    table.extend(b"VMM-REF ");
    table.extend(b"VMM-REFERENC");
    // No OEM table.
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(map::LAPIC_ADDRESS.to_le_bytes());
    table.extend([0; 4]);
    debug_assert_eq!(table.len(), HEADER);
    table.extend(entries);
    set_checksum(&mut table, 7);
    Ok(table)
}

/// Makes all bytes sum to zero by the byte at `offset`, which is zero so far.
fn set_checksum(bytes: &mut [u8], offset: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = bytes.get_mut(offset) {
        *checksum = sum.wrapping_neg();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks a table as a guest does, and counts the entries of each type.
    fn walk(bytes: &[u8]) -> [u32; 5] {
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((&bytes[..4], sum(&bytes[..16])), (&b"_MP_"[..], 0));
        let address = u64::from(u32::from_le_bytes(bytes[4..8].try_into().unwrap()));
        let table = &bytes[usize::try_from(address - map::MP_TABLE.base).unwrap()..];
        let len = usize::from(u16::from_le_bytes(table[4..6].try_into().unwrap()));
        assert_eq!(
            (&table[..4], len, sum(table)),
            (&b"PCMP"[..], table.len(), 0)
        );
        let mut counts = [0; 5];
        let mut rest = &table[44..];
        while let Some(&kind) = rest.first() {
            counts[usize::from(kind)] += 1;
            rest = &rest[if kind == PROCESSOR { 20 } else { 8 }..];
        }
        let claimed = u16::from_le_bytes(table[34..36].try_into().unwrap());
        assert_eq!(u32::from(claimed), counts.iter().sum::<u32>());
        counts
    }

    #[test]
    fn the_table_names_every_processor_bus_and_interrupt() {
        for vcpus in [1, 2, 8, MAX_VCPUS] {
            let table = build(vcpus, &IoApic::new(vcpus, Keeper::Kvm))
                .unwrap()
                .unwrap();
            assert_eq!(walk(&table), [vcpus, 1, 1, 24, 2]);
            assert!(table.len() as u64 <= map::MP_TABLE.len);
        }
    }

    #[test]
    fn without_pics_no_local_input_is_theirs() {
        let table = build(2, &IoApic::new(2, Keeper::Vmm)).unwrap().unwrap();
        assert_eq!(walk(&table), [2, 1, 1, 64, 1]);
    }

    #[test]
    fn every_pin_serves_the_interrupt_of_its_number() {
        for keeper in [Keeper::Kvm, Keeper::Vmm] {
            let chip = IoApic::new(1, keeper);
            let table = build(1, &chip).unwrap().unwrap();
            let entries = &table[16 + 44 + 20 + 8 + 8..];
            let pins = usize::try_from(chip.pins).unwrap();
            for (pin, entry) in (0..chip.pins).zip(entries.chunks_exact(8)) {
                let pin = u8::try_from(pin).unwrap();
                assert_eq!(entry, [IO_INTERRUPT, INT, 0, 0, BUS_ISA, pin, chip.id, pin]);
            }
            assert_eq!(entries[8 * pins], LOCAL_INTERRUPT);
        }
    }

    #[test]
    fn only_the_first_processor_boots_and_the_io_apic_has_an_id_of_its_own() {
        let table = build(3, &IoApic::new(3, Keeper::Kvm)).unwrap().unwrap();
        let processor = |index: usize| &table[16 + 44 + 20 * index..];
        let flags: Vec<u8> = (0..3).map(|index| processor(index)[3]).collect();
        assert_eq!(flags, [3, 1, 1]);
        let io_apic = &table[16 + 44 + 60 + 8..];
        assert_eq!((io_apic[0], io_apic[1]), (IO_APIC, 3));
    }

    #[test]
    fn more_processors_than_the_format_has_ids_for_get_no_table() {
        assert_eq!(
            build(MAX_VCPUS + 1, &IoApic::new(1, Keeper::Kvm)).unwrap(),
            None
        );
    }
}
