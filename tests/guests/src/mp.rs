//! The MP table (MultiProcessor Specification 1.4, 4): where a guest without ACPI has its I/O APIC from.

use crate::machine::u32_at;

/// Where a PC's guest looks for the pointer, on each 16th byte.
const PLACES: core::ops::Range<usize> = 0xf_0000..0x10_0000;
const HEADER: usize = 44;
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;

fn memory(address: usize, len: usize) -> &'static [u8] {
    // SAFETY: the first MiB is RAM, mapped, and the host has written its tables before the guest ran.
    unsafe { core::slice::from_raw_parts(address as *const u8, len) }
}

fn is_whole(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// The entries of the table.
fn entries() -> impl Iterator<Item = &'static [u8]> {
    let mut places = PLACES.step_by(16).map(|place| memory(place, 16));
    let pointer = places.find(|bytes| bytes.starts_with(b"_MP_") && is_whole(bytes));
    let place = pointer
        .and_then(|bytes| u32_at(bytes, 4))
        .expect("no MP table");
    let header = memory(place as usize, HEADER);
    let len = usize::from(u16::from_le_bytes([header[4], header[5]]));
    let table = memory(place as usize, len);
    assert!(
        table.starts_with(b"PCMP") && is_whole(table),
        "a broken MP table"
    );
    let mut rest = &table[HEADER..];
    core::iter::from_fn(move || {
        let len = if *rest.first()? == PROCESSOR { 20 } else { 8 };
        let (entry, behind) = rest.split_at(len);
        rest = behind;
        Some(entry)
    })
}

/// The address of the I/O APIC, and the pin that an interrupt of the ISA bus has there.
pub(crate) fn io_apic(irq: u32) -> (u64, u32) {
    let isa = entries().find(|entry| entry[0] == BUS && entry[2..5] == *b"ISA");
    let isa = isa.expect("no ISA bus")[1];
    let apic = entries()
        .find(|entry| entry[0] == IO_APIC)
        .expect("no I/O APIC");
    let address = u32_at(apic, 4).expect("a whole entry");
    let mut interrupts = entries().filter(|entry| entry[0] == IO_INTERRUPT);
    let found = interrupts.find(|entry| {
        // Of the kind INT, edge and high as the bus has them.
        entry[1..4] == [0, 0, 0] && entry[4] == isa && u32::from(entry[5]) == irq
    });
    let found = found.unwrap_or_else(|| panic!("the MP table has no interrupt {irq}"));
    assert_eq!(found[6], apic[1], "it is this I/O APIC's");
    (address.into(), found[7].into())
}
