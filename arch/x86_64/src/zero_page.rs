//! The zero page, `boot_params` of the Linux boot protocol.
//!
//! Offsets are those of Linux Documentation/arch/x86/zero-page.rst and boot.rst.

use arch::{AddressRange, BootError, GuestRam, Placed};

use crate::e820::{E820Entry, e820};
use crate::handover::{DEFAULT_CMDLINE_SIZE, Handover, write};
use crate::map;

const EXT_RAMDISK_IMAGE: usize = 0x0C0;
const EXT_RAMDISK_SIZE: usize = 0x0C4;
const ACPI_RSDP_ADDR: usize = 0x070;
const E820_ENTRIES: usize = 0x1E8;
/// The setup header's first field, `setup_sects`.
const SETUP_HEADER: usize = 0x1F1;
/// The end of the space that the setup header has in the zero page.
const SETUP_HEADER_END: usize = 0x290;
const BOOT_FLAG: usize = 0x1FE;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21C;
const CMD_LINE_PTR: usize = 0x228;
const CMDLINE_SIZE: usize = 0x238;
const E820_TABLE: usize = 0x2D0;
const E820_ENTRY_SIZE: usize = 20;
const E820_MAX_ENTRIES: usize = 128;
const ZERO_PAGE_SIZE: usize = 4096;

/// `boot_flag`.
const BOOT_FLAG_MAGIC: u16 = 0xAA55;
/// `header`: "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// The protocol version claimed for a kernel without a setup header: 2.14, the one that brought
/// `acpi_rsdp_addr`.
const ELF_VERSION: u16 = 0x020E;
/// `type_of_loader`: a boot loader without an assigned number.
const UNKNOWN_LOADER: u8 = 0xFF;
/// `loadflags`: the protected-mode code is at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// The protocol version that brought `cmdline_size`; before it the limit is 255.
const VERSION_WITH_CMDLINE_SIZE: u16 = 0x0206;
const OLD_CMDLINE_SIZE: u64 = 255;

/// The longest command line that the kernel with this setup header takes, in bytes without the
/// final zero.
pub(crate) fn cmdline_limit(setup_header: &[u8]) -> u64 {
    let limit = match (
        field(setup_header, VERSION),
        field(setup_header, CMDLINE_SIZE),
    ) {
        _ if setup_header.is_empty() => DEFAULT_CMDLINE_SIZE,
        (Some(version), Some(size)) if u16::from_le_bytes(version) >= VERSION_WITH_CMDLINE_SIZE => {
            u32::from_le_bytes(size).into()
        }
        _ => OLD_CMDLINE_SIZE,
    };
    limit.min(map::CMDLINE.len - 1)
}

/// A field of a setup header, by its offset in the zero page.
fn field<const N: usize>(setup_header: &[u8], offset: usize) -> Option<[u8; N]> {
    let start = offset.checked_sub(SETUP_HEADER)?;
    setup_header.get(start..)?.first_chunk().copied()
}

/// Writes the zero page.
pub(crate) fn write_to(handover: &Handover<'_>, ram: &GuestRam) -> Result<Placed, BootError> {
    let mut page = Page([0; ZERO_PAGE_SIZE]);
    let kernel = handover.request.kernel;
    page.set_setup_header(&kernel.setup_header, kernel.range)?;
    page.set(TYPE_OF_LOADER, [UNKNOWN_LOADER]);
    page.set(CMD_LINE_PTR, low32(handover.cmdline.base).to_le_bytes());
    page.set(ACPI_RSDP_ADDR, map::RSDP.to_le_bytes());
    if let Some(initrd) = handover.request.initrd {
        page.set(RAMDISK_IMAGE, low32(initrd.base).to_le_bytes());
        page.set(EXT_RAMDISK_IMAGE, low32(initrd.base >> 32).to_le_bytes());
        page.set(RAMDISK_SIZE, low32(initrd.len).to_le_bytes());
        page.set(EXT_RAMDISK_SIZE, low32(initrd.len >> 32).to_le_bytes());
    }
    page.set_e820(&e820(handover.request.plan))?;
    write(ram, "zero page", map::ZERO_PAGE, &page.0)
}

/// The low half of a value whose high half has a field of its own or is zero.
fn low32(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

struct Page([u8; ZERO_PAGE_SIZE]);

impl Page {
    /// Sets a field; every caller passes an offset of this module, all of which lie in the page.
    fn set<const N: usize>(&mut self, offset: usize, value: [u8; N]) {
        if let Some(field) = self.0.get_mut(offset..).and_then(<[u8]>::first_chunk_mut) {
            *field = value;
        }
    }

    fn set_setup_header(&mut self, header: &[u8], kernel: AddressRange) -> Result<(), BootError> {
        if header.is_empty() {
            self.set(BOOT_FLAG, BOOT_FLAG_MAGIC.to_le_bytes());
            self.set(HEADER, HEADER_MAGIC.to_le_bytes());
            self.set(VERSION, ELF_VERSION.to_le_bytes());
            self.set(LOADFLAGS, [LOADED_HIGH]);
            let size = u32::try_from(DEFAULT_CMDLINE_SIZE).unwrap_or(u32::MAX);
            self.set(CMDLINE_SIZE, size.to_le_bytes());
            return Ok(());
        }
        let space = self.0.get_mut(SETUP_HEADER..SETUP_HEADER_END);
        let field = space.and_then(|space| space.get_mut(..header.len()));
        let Some(field) = field else {
            return Err(BootError::TooLarge {
                what: "the kernel's setup header",
                size: header.len() as u64,
                cause: format!(
                    "the zero page has {} bytes",
                    SETUP_HEADER_END - SETUP_HEADER
                ),
            });
        };
        field.copy_from_slice(header);
        self.set(CODE32_START, low32(kernel.base).to_le_bytes());
        Ok(())
    }

    fn set_e820(&mut self, entries: &[E820Entry]) -> Result<(), BootError> {
        let count = u8::try_from(entries.len()).ok();
        let Some(count) = count.filter(|&count| usize::from(count) <= E820_MAX_ENTRIES) else {
            return Err(BootError::TooLarge {
                what: "the memory map",
                size: (entries.len() * E820_ENTRY_SIZE) as u64,
                cause: format!("the zero page has {E820_MAX_ENTRIES} entries"),
            });
        };
        self.set(E820_ENTRIES, [count]);
        for (index, entry) in entries.iter().enumerate() {
            let offset = E820_TABLE + index * E820_ENTRY_SIZE;
            self.set(offset, entry.range.base.to_le_bytes());
            self.set(offset + 8, entry.range.len.to_le_bytes());
            self.set(offset + 16, (entry.kind as u32).to_le_bytes());
        }
        Ok(())
    }
}
