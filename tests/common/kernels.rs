//! Tiny guests, made of a few instructions each.

use std::io::Write;

/// Where the guests' code lies.
pub(crate) const ENTRY: u64 = 0x10_0000;

/// `mov al, 0xfe; out 0x64, al; hlt`: reset through the i8042.
pub(crate) const RESET: [u8; 5] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4];

/// Code that prints a text on COM1.
pub(crate) fn print(text: &str) -> Vec<u8> {
    text.bytes()
        .flat_map(|byte| [0x66, 0xba, 0xf8, 0x03, 0xb0, byte, 0xee])
        .collect()
}

/// Echoes COM1, polled, until it has echoed a `q`; then resets.
pub(crate) fn echo() -> Vec<u8> {
    let mut code = vec![
        0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
        0xec, // in al, dx
        0xa8, 0x01, // test al, 1
        0x74, 0xf7, // jz to the start
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, // in al, dx
        0xee, // out dx, al
        0x3c, b'q', // cmp al, 'q'
        0x75, 0xed, // jne to the start
    ];
    code.extend(RESET);
    code
}

/// An ELF kernel for the 64-bit protocol with `code` at [`ENTRY`], in a file of its own.
pub(crate) fn kernel(code: &[u8]) -> tempfile::NamedTempFile {
    in_file(&elf(code))
}

/// The same, which says that it is a Linux of this release, where a vmlinux does.
pub(crate) fn linux(code: &[u8], release: &str) -> tempfile::NamedTempFile {
    let mut elf = elf(code);
    let banner = format!("Linux version {release}\0");
    let names = b"\0.rodata\0.shstrtab\0";
    let (banner_at, names_at) = (elf.len() as u64, (elf.len() + banner.len()) as u64);
    elf.extend(banner.bytes());
    elf.extend(names);
    let sections_at = elf.len() as u64;
    for (name, offset, len) in [
        (0u32, 0, 0),
        (1, banner_at, banner.len() as u64),
        (9, names_at, names.len() as u64),
    ] {
        let mut section = [0; 64];
        section[..4].copy_from_slice(&name.to_le_bytes());
        section[24..32].copy_from_slice(&offset.to_le_bytes());
        section[32..40].copy_from_slice(&len.to_le_bytes());
        elf.extend(section);
    }
    elf[40..48].copy_from_slice(&sections_at.to_le_bytes());
    elf[60..64].copy_from_slice(&[3, 0, 2, 0]);
    in_file(&elf)
}

fn in_file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

pub(crate) fn elf(code: &[u8]) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend(ENTRY.to_le_bytes());
    elf.extend(64u64.to_le_bytes());
    elf.extend([0; 12]);
    elf.extend([64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    let len = code.len() as u64;
    for value in [0x1000, ENTRY, ENTRY, len, len, 0x1000] {
        elf.extend(value.to_le_bytes());
    }
    elf.resize(0x1000, 0);
    elf.extend(code);
    elf
}
