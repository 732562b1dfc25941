//! Linux for a machine that boots from its disk alone: the disk is the memory that Linux starts with, an
//! option ROM reads it and jumps into the kernel. No boot loader reads through the BIOS, and nothing is compressed.
//!
//! Linux is entered as a PVH guest: in 32-bit mode, with the address of a start-info structure (Xen,
//! xen/include/public/arch-x86/hvm/start_info.h). The BIOS has set up PCI and the ACPI tables before.

use crate::step::Result;

/// Where the option ROM is.
pub(super) const LOADER: u32 = 0xd0000;
/// Where in memory the disk goes: a page with the start-info structure, then the kernel.
const BASE: u32 = 0x0100_0000 - PAGE;
const PAGE: u32 = 4096;
/// What one command reads: 65,536 sectors.
const PIECE: usize = 32 << 20;
/// Bochs takes disks of whole cylinders.
const CYLINDER: usize = 16 * 63 * 512;
/// What the BIOS keeps for its ACPI tables at the end of memory (Bochs, bios/rombios32.c).
const ACPI_TABLES: u32 = 0x1_0000;

/// What Bochs reads.
#[derive(Debug)]
pub(super) struct Boot {
    pub(super) disk: Vec<u8>,
    pub(super) loader: Vec<u8>,
}

impl Boot {
    /// Of an ELF kernel, an initramfs, a command line and the size of the machine's memory.
    pub(super) fn new(kernel: &[u8], initramfs: &[u8], cmdline: &str, mib: u32) -> Result<Self> {
        let mut disk = vec![0; usize::try_from(PAGE)?];
        place(kernel, &mut disk)?;
        let initramfs_at = BASE + u32::try_from(disk.len())?;
        disk.extend(initramfs);
        let info = start_info(initramfs_at, u32::try_from(initramfs.len())?, cmdline, mib)?;
        disk.get_mut(..info.len())
            .ok_or("the command line is too long")?
            .copy_from_slice(&info);
        let pieces = disk.len().div_ceil(PIECE);
        disk.resize((pieces * PIECE).next_multiple_of(CYLINDER), 0);
        Ok(Self {
            disk,
            loader: loader(u8::try_from(pieces)?, entry(kernel)?),
        })
    }
}

/// Puts an ELF file's segments where they belong in memory, the zeros behind them as well.
fn place(kernel: &[u8], memory: &mut Vec<u8>) -> Result<()> {
    const LOAD: usize = 1;
    // Offsets in Elf64_Ehdr and Elf64_Phdr (System V ABI).
    let (headers, count) = (field(kernel, 32, 8)?, field(kernel, 56, 2)?);
    for header in (0..count).map(|number| headers + 56 * number) {
        if field(kernel, header, 4)? != LOAD {
            continue;
        }
        let word = |offset| field(kernel, header + offset, 8);
        let (offset, address, in_file, in_memory) = (word(8)?, word(24)?, word(32)?, word(40)?);
        let at = address
            .checked_sub(usize::try_from(BASE)?)
            .ok_or("the kernel starts below 16 MiB")?;
        memory.resize(memory.len().max(at + in_memory), 0);
        let segment = kernel.get(offset..offset + in_file);
        memory
            .get_mut(at..at + in_file)
            .ok_or("a segment is larger in the file than in memory")?
            .copy_from_slice(segment.ok_or("a segment is cut off")?);
    }
    memory.resize(memory.len().next_multiple_of(usize::try_from(PAGE)?), 0);
    Ok(())
}

/// The 32-bit entry, from the note XEN_ELFNOTE_PHYS32_ENTRY.
fn entry(kernel: &[u8]) -> Result<u32> {
    // Sizes of the name and of what it is about, the type, the name.
    const NOTE: &[u8] = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";
    let at = kernel
        .windows(NOTE.len())
        .position(|bytes| bytes == NOTE)
        .ok_or("the kernel has no PVH entry")?;
    Ok(u32::try_from(field(kernel, at + NOTE.len(), 8)?)?)
}

/// A little-endian number.
fn field(bytes: &[u8], offset: usize, size: usize) -> Result<usize> {
    let bytes = bytes
        .get(offset..offset + size)
        .ok_or("a file is cut off")?;
    let number = bytes
        .iter()
        .rev()
        .fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    Ok(usize::try_from(number)?)
}

/// The start-info structure and what it points to, for the page at [`BASE`].
fn start_info(initramfs: u32, len: u32, cmdline: &str, mib: u32) -> Result<Vec<u8>> {
    const MAGIC: u32 = 0x336e_c578;
    const VERSION: u32 = 1;
    const MODULES: u32 = BASE + 0x40;
    const MEMORY: u32 = BASE + 0x60;
    const CMDLINE: u32 = BASE + 0xc0;
    // As the BIOS has it: low memory without its data area, the rest without its tables.
    let top = (mib << 20) - ACPI_TABLES;
    let memory = [
        (0, 0x9_fc00, 1),
        (0x10_0000, top - 0x10_0000, 1),
        (top, ACPI_TABLES, 3),
    ];

    let mut page = Vec::new();
    let mut put =
        |numbers: &[u32]| page.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    put(&[MAGIC, VERSION, 0, 1]);
    // Pairs are 64-bit numbers; no RSDP: Linux looks for it.
    put(&[MODULES, 0, CMDLINE, 0, 0, 0, MEMORY, 0]);
    put(&[u32::try_from(memory.len())?, 0, 0, 0]);
    put(&[initramfs, 0, len, 0, 0, 0, 0, 0]);
    for (start, size, kind) in memory {
        put(&[start, 0, size, 0, kind, 0]);
    }
    page.resize(usize::try_from(CMDLINE - BASE)?, 0);
    page.extend(cmdline.bytes());
    page.push(0);
    Ok(page)
}

/// The option ROM: its head, then 16-bit code that goes to 32-bit mode, then code that reads so many pieces
/// of the disk to [`BASE`] with READ SECTORS EXT (ATA/ATAPI-6) and jumps to `entry`.
fn loader(pieces: u8, entry: u32) -> Vec<u8> {
    let base = BASE.to_le_bytes();
    let parts: &[&[u8]] = &[
        // Signature, size in units of 512 bytes, jmp code
        &[0x55, 0xaa, 1, 0xeb, 0x21, 0, 0, 0],
        // gdt: none, code and data without limits (offset 8)
        &[0; 8],
        &[0xff, 0xff, 0, 0, 0, 0x9b, 0xcf, 0],
        &[0xff, 0xff, 0, 0, 0, 0x93, 0xcf, 0],
        // gdtr: limit, address (offset 0x20)
        &[23, 0, 0x08, 0x00, 0x0d, 0x00],
        // code: cli; lgdtl cs:gdtr
        &[0xfa, 0x2e, 0x66, 0x0f, 0x01, 0x16, 0x20, 0],
        // mov eax, cr0; or al, 1; mov cr0, eax; ljmpl 8:flat
        &[0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0],
        &[0x66, 0xea, 0x3e, 0x00, 0x0d, 0x00, 0x08, 0x00],
        // flat (offset 0x3e): mov eax, 16; mov ds, eax; mov es, eax; mov ss, eax
        &[0xb8, 16, 0, 0, 0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0],
        // The gate A20: in al, 0x92; or al, 2; out 0x92, al
        &[0xe4, 0x92, 0x0c, 0x02, 0xe6, 0x92],
        // cld; xor ebx, ebx (the piece's number); mov edi, BASE
        &[0xfc, 0x31, 0xdb, 0xbf, base[0], base[1], base[2], base[3]],
        // piece: mov dx, 0x1f2; xor eax, eax
        &[0x66, 0xba, 0xf2, 0x01, 0x31, 0xc0],
        // The upper halves of the sectors' count and number are 0: out dx, al; inc edx; ...
        &[0xee, 0x42, 0xee, 0x42, 0xee, 0x42, 0xee],
        // mov dx, 0x1f2; the lower half of the count, and the number up to bit 15
        &[0x66, 0xba, 0xf2, 0x01, 0xee, 0x42, 0xee, 0x42, 0xee, 0x42],
        // Bits 16 to 23: mov al, bl; out dx, al; inc edx
        &[0x88, 0xd8, 0xee, 0x42],
        // The master, by LBA: mov al, 0xe0; out dx, al; inc edx; the command: mov al, 0x24; out dx, al
        &[0xb0, 0xe0, 0xee, 0x42, 0xb0, 0x24, 0xee],
        // mov esi, 65536
        &[0xbe, 0, 0, 1, 0],
        // sector: until data are there: mov dx, 0x1f7; in al, dx; and al, 0x88; cmp al, 8; jne sector
        &[
            0x66, 0xba, 0xf7, 0x01, 0xec, 0x24, 0x88, 0x3c, 0x08, 0x75, 0xf5,
        ],
        // mov dx, 0x1f0; mov ecx, 256; rep insw
        &[0x66, 0xba, 0xf0, 0x01, 0xb9, 0, 1, 0, 0, 0x66, 0xf3, 0x6d],
        // dec esi; jnz sector; inc ebx; cmp bl, pieces; jne piece
        &[0x4e, 0x75, 0xe6, 0x43, 0x80, 0xfb, pieces, 0x75, 0xb9],
        // mov ebx, BASE; mov eax, entry; jmp eax
        &[0xbb, base[0], base[1], base[2], base[3], 0xb8],
        &entry.to_le_bytes(),
        &[0xff, 0xe0],
    ];
    let mut rom = parts.concat();
    // All bytes add up to 0.
    rom.resize(511, 0);
    rom.push(rom.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte)));
    rom
}
