//! ELF kernels (System V ABI, chapters 4 and 5; Xen's `elfnote.h` for the PVH entry).

use super::header::{Elf, KernelHeader, Segment};
use super::reader::{PREFIX, Reader, fail, u16_at, u32_at, u64_at};
use crate::BootError;

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const MACHINE_X86_64: u16 = 62;
const PROGRAM_HEADER_SIZE: u16 = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Linux kernels have about five; a hostile file may claim 65535.
const MAX_SEGMENTS: u16 = 128;
/// Notes of all segments, in bytes: a loader walks every one of them.
const MAX_NOTES: u64 = 64 << 10;
const SECTION_HEADER_SIZE: u16 = 64;
/// Linux kernels have about fifty.
const MAX_SECTIONS: u16 = 512;
/// The names of all sections, in bytes.
const MAX_NAMES: u64 = 64 << 10;
/// The lengths of name and descriptor, and the type.
const NOTE_HEADER: usize = 12;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const XEN_PHYS32_ENTRY: u32 = 18;

/// The names of a machine: in words, and as `uname -m` has it.
fn other_machine(machine: u16, class: u8) -> KernelHeader {
    let (name, architecture) = match (machine, class) {
        (3, _) => ("32-bit x86 ELF", Some("i686")),
        (8, _) => ("MIPS ELF", Some("mips64")),
        (21, _) => ("64-bit PowerPC ELF", Some("ppc64le")),
        (22, _) => ("s390 ELF", Some("s390x")),
        (40, _) => ("32-bit arm ELF", Some("armv7l")),
        (183, _) => ("arm64 ELF", Some("aarch64")),
        (243, CLASS_64) => ("riscv64 ELF", Some("riscv64")),
        (243, _) => ("riscv32 ELF", Some("riscv32")),
        (258, _) => ("LoongArch ELF", Some("loongarch64")),
        _ => ("ELF", None),
    };
    let name = match architecture {
        Some(_) => name.to_owned(),
        None => format!("ELF for machine {machine}"),
    };
    KernelHeader::Other { name, architecture }
}

pub(super) fn parse(image: &Reader<'_>, start: &[u8]) -> Result<KernelHeader, BootError> {
    parse_header(image, start).unwrap_or_else(|| fail("ELF: the header is truncated"))
}

/// `None` when the header itself is too short.
fn parse_header(image: &Reader<'_>, start: &[u8]) -> Option<Result<KernelHeader, BootError>> {
    let (class, order) = (*start.get(4)?, *start.get(5)?);
    let machine = u16_at(start, 18)?;
    if order != LITTLE_ENDIAN {
        return Some(Ok(KernelHeader::Other {
            name: "big-endian ELF".to_owned(),
            architecture: None,
        }));
    }
    if machine != MACHINE_X86_64 || class != CLASS_64 {
        return Some(Ok(other_machine(machine, class)));
    }
    if u16_at(start, 16)? != TYPE_EXECUTABLE {
        return Some(fail(
            "ELF: not an executable (shared objects and modules do not boot)",
        ));
    }
    let entry = u64_at(start, 24)?;
    let offset = u64_at(start, 32)?;
    let (size, count) = (u16_at(start, 54)?, u16_at(start, 56)?);
    if size != PROGRAM_HEADER_SIZE {
        return Some(fail(format!(
            "ELF: program headers of {size} bytes, not 56"
        )));
    }
    if count == 0 || count > MAX_SEGMENTS {
        return Some(fail(format!(
            "ELF: {count} program headers, expected 1 to {MAX_SEGMENTS}"
        )));
    }
    let table = match image.read(offset, u64::from(size) * u64::from(count)) {
        Ok(table) => table,
        Err(error) => return Some(Err(error)),
    };
    Some(parse_segments(image, entry, &table).map(KernelHeader::Elf))
}

/// Where a section with this name lies in the image, and its size in bytes.
pub(super) fn section(image: &Reader<'_>, name: &[u8]) -> Option<(u64, u64)> {
    let start = image.prefix(PREFIX).ok()?;
    let offset = u64_at(&start, 40)?;
    let field = |at| u16_at(&start, at);
    let (size, count, names) = (field(58)?, field(60)?, field(62)?);
    if size != SECTION_HEADER_SIZE || count > MAX_SECTIONS {
        return None;
    }
    let len = u64::from(size) * u64::from(count);
    let table = image.read(offset, len).ok()?;
    let place = |header: &[u8]| Some((u64_at(header, 24)?, u64_at(header, 32)?));
    let mut headers = table.chunks_exact(size.into());
    let (offset, len) = place(headers.clone().nth(names.into())?)?;
    let names = image.read(offset, len.min(MAX_NAMES)).ok()?;
    let is_named = |header: &&[u8]| {
        let at = u32_at(header, 0).and_then(|at| usize::try_from(at).ok());
        let text = at.and_then(|at| names.get(at..)).unwrap_or_default();
        text.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(&[0]))
    };
    place(headers.find(is_named)?)
}

fn parse_segments(image: &Reader<'_>, entry: u64, table: &[u8]) -> Result<Elf, BootError> {
    let mut notes = 0u64;
    let mut segments: Vec<Segment> = Vec::new();
    let mut pvh_entry = None;
    for header in table.chunks_exact(PROGRAM_HEADER_SIZE.into()) {
        let word = |offset| u64_at(header, offset).unwrap_or_default();
        let segment = Segment {
            offset: word(8),
            file_size: word(32),
            address: word(24),
            memory_size: word(40),
        };
        match u32_at(header, 0) {
            Some(PT_LOAD) => {
                check(image, &segment)?;
                if segment.memory_size > 0 {
                    segments.push(segment);
                }
            }
            Some(PT_NOTE) => {
                notes = notes.saturating_add(segment.file_size);
                if notes > MAX_NOTES {
                    return fail(format!("ELF: {notes} bytes of notes, at most {MAX_NOTES}"));
                }
                let bytes = image.read(segment.offset, segment.file_size)?;
                // What the header says first; but linkers also put notes of both kinds together.
                let [first, second] = if word(48) == 8 { [8, 4] } else { [4, 8] };
                let found = || find_pvh(&bytes, first).or_else(|| find_pvh(&bytes, second));
                pvh_entry = pvh_entry.or_else(found);
            }
            _ => {}
        }
    }
    segments.sort_unstable_by_key(|segment| segment.address);
    if segments.is_empty() {
        return fail("ELF: nothing to load");
    }
    // `check` has shown that no end wraps.
    let overlap = segments.windows(2).any(|pair| match pair {
        [low, high] => low.address + low.memory_size > high.address,
        _ => false,
    });
    if overlap {
        return fail("ELF: segments overlap in memory");
    }
    // The entry of a kernel with a PVH note may be a virtual address (FreeBSD, NetBSD).
    let (name, address) = pvh_entry.map_or(("entry", entry), |entry| ("PVH entry", entry));
    let inside = segments.iter().any(|segment| {
        address
            .checked_sub(segment.address)
            .is_some_and(|at| at < segment.memory_size)
    });
    if !inside {
        return fail(format!(
            "ELF: the {name} {address:#x} lies outside every segment"
        ));
    }
    Ok(Elf {
        entry,
        pvh_entry,
        segments,
    })
}

fn check(image: &Reader<'_>, segment: &Segment) -> Result<(), BootError> {
    let Segment {
        offset,
        file_size,
        address,
        memory_size,
    } = *segment;
    if offset
        .checked_add(file_size)
        .is_none_or(|end| end > image.size)
    {
        return fail(format!(
            "ELF: truncated, the segment at {address:#x} is not all there"
        ));
    }
    if file_size > memory_size {
        return fail(format!(
            "ELF: the segment at {address:#x} is larger than its memory"
        ));
    }
    if address.checked_add(memory_size).is_none() {
        return fail(format!(
            "ELF: the segment at {address:#x} wraps around the address space"
        ));
    }
    Ok(())
}

/// The entry that a Xen note names. Name and descriptor are padded so that what follows lies at a multiple
/// of `alignment`, 4 or 8 bytes, from the start of the notes (as binutils reads them: `ELF_NOTE_DESC_OFFSET`).
fn find_pvh(notes: &[u8], alignment: usize) -> Option<u64> {
    let mut at = 0usize;
    loop {
        let rest = notes.get(at..)?;
        let (name_len, len) = (u32_at(rest, 0)? as usize, u32_at(rest, 4)? as usize);
        let kind = u32_at(rest, 8)?;
        let name = rest.get(NOTE_HEADER..)?.get(..name_len)?;
        let start = (NOTE_HEADER + name_len).checked_next_multiple_of(alignment)?;
        let value = rest.get(start..)?.get(..len)?;
        if kind == XEN_PHYS32_ENTRY && name == b"Xen\0" {
            match len {
                4 => return u32_at(value, 0).map(u64::from),
                8 => return u64_at(value, 0),
                _ => {}
            }
        }
        // At least the note's header is consumed.
        at = at.checked_add((start + len).checked_next_multiple_of(alignment)?)?;
    }
}

impl Elf {
    /// The entry for the 64-bit Linux protocol; none when the header has a virtual address.
    #[must_use]
    pub fn entry_64(&self) -> Option<u64> {
        let inside = self.segments.iter().any(|segment| {
            let at = self.entry.checked_sub(segment.address);
            at.is_some_and(|at| at < segment.memory_size)
        });
        inside.then_some(self.entry)
    }
}
