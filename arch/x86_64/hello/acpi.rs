//! The ACPI tables that this guest needs (ACPI Specification 6.5, chapter 5): RSDP, XSDT, MADT,
//! FADT, and the package `_S5_` of the DSDT.

use crate::machine::{memory, number, u32_at, u64_at};

/// Length of the header that every table starts with.
const HEADER: usize = 36;
/// Length of the MADT's own fields before its structures.
const MADT_HEADER: usize = HEADER + 8;
/// Local APIC flag: the processor may be used.
const ENABLED: u32 = 1;

/// A table's bytes, when it has the signature.
fn table(address: u64, signature: &[u8; 4]) -> Option<&'static [u8]> {
    let header = memory(address, HEADER as u64)?;
    if !header.starts_with(signature) {
        return None;
    }
    memory(address, u32_at(header, 4)?.into())
}

/// Finds a table by its signature through the root pointer.
pub fn find(rsdp: u64, signature: &[u8; 4]) -> Option<&'static [u8]> {
    let root = memory(rsdp, HEADER as u64)?;
    if !root.starts_with(b"RSD PTR ") {
        return None;
    }
    let xsdt = table(u64_at(root, 24)?, b"XSDT")?;
    let mut entries = xsdt.get(HEADER..)?.chunks_exact(8);
    entries.find_map(|entry| table(u64_at(entry, 0)?, signature))
}

/// The local APIC ids of the processors that may be used.
pub fn apic_ids(madt: &[u8]) -> impl Iterator<Item = u32> + Clone {
    let mut rest = madt.get(MADT_HEADER..).unwrap_or_default();
    let structures = core::iter::from_fn(move || {
        let len = usize::from(*rest.get(1)?);
        let structure = rest.get(..len.max(2))?;
        rest = rest.get(len.max(2)..)?;
        Some(structure)
    });
    structures.filter_map(|structure| {
        let (id, flags) = match structure.first()? {
            0 => (u32::from(*structure.get(3)?), u32_at(structure, 4)?),
            9 => (u32_at(structure, 4)?, u32_at(structure, 8)?),
            _ => return None,
        };
        (flags & ENABLED != 0).then_some(id)
    })
}

/// The sleep control register: whether it is a port, and its address.
pub fn sleep_control(fadt: &[u8]) -> Option<(bool, u64)> {
    let address = u64_at(fadt, 248).filter(|&address| address != 0)?;
    match fadt.get(244)? {
        0 => Some((false, address)),
        1 => Some((true, address)),
        _ => None,
    }
}

/// The sleep type of S5, soft off: the first number of the package `_S5_`.
pub fn s5_type(fadt: &[u8]) -> Option<u8> {
    let dsdt = match u64_at(fadt, 140).filter(|&address| address != 0) {
        Some(address) => address,
        None => u32_at(fadt, 40)?.into(),
    };
    let aml = table(dsdt, b"DSDT")?.get(HEADER..)?;
    // NameString, PackageOp, PkgLength of one byte, NumElements, then the number.
    let at = aml.windows(5).position(|bytes| bytes == b"_S5_\x12")?;
    match number(aml, at + 7)? {
        [0x0a, value] => Some(value),
        [value @ (0 | 1), _] => Some(value),
        _ => None,
    }
}
