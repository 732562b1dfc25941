//! bzImage setup headers (Linux Documentation/arch/x86/boot.rst).

use super::header::{BzImage, KernelHeader};
use super::reader::{Reader, fail, u16_at, u32_at, u64_at};
use crate::BootError;

/// Where the setup header starts, in the image and in the zero page.
const HEADER: usize = 0x1f1;
/// The header's length byte counts from here.
const HEADER_END: usize = 0x202;
/// The zero page has room for the header up to here.
const HEADER_LIMIT: usize = 0x290;
const SECTOR: u64 = 512;
/// `loadflags` bit 0, LOADED_HIGH: the protected-mode kernel is loaded at 1 MiB.
const LOADED_HIGH: u8 = 1;
/// Before version 2.03 an initrd had to end below this.
const DEFAULT_INITRD_MAX: u64 = 0x37ff_ffff;
/// Before version 2.06 the command line had this limit.
const DEFAULT_CMDLINE_SIZE: u64 = 255;
/// Where every bzImage may be loaded.
const ONE_MIB: u64 = 0x10_0000;

pub(super) fn parse(image: &Reader<'_>, start: &[u8]) -> Result<KernelHeader, BootError> {
    parse_header(image, start).unwrap_or_else(|| fail("bzImage: the setup header is truncated"))
}

/// `None` when the header is too short for its version.
fn parse_header(image: &Reader<'_>, start: &[u8]) -> Option<Result<KernelHeader, BootError>> {
    let version = u16_at(start, 0x206)?;
    if version < 0x0200 || *start.get(0x211)? & LOADED_HIGH == 0 {
        return Some(fail(
            "zImage: kernels that load below 1 MiB do not boot here",
        ));
    }
    let since = |first: u16| version >= first;
    let sectors = match *start.get(HEADER)? {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let setup_size = (sectors + 1) * SECTOR;
    let Some(kernel_size) = image.size.checked_sub(setup_size).filter(|&size| size > 0) else {
        return Some(fail("bzImage: truncated, there is only setup code"));
    };
    // Paragraphs of 16 bytes; before 2.04 the upper half of the field was something else.
    let paragraphs = u32_at(start, 0x1f4)?;
    if since(0x0204) && u64::from(paragraphs) * 16 > kernel_size.next_multiple_of(16) {
        return Some(fail(format!(
            "bzImage: truncated, {} of {} bytes of the kernel are there",
            kernel_size,
            u64::from(paragraphs) * 16
        )));
    }
    let relocatable = since(0x0205) && *start.get(0x234)? != 0;
    let alignment = if since(0x0205) {
        u64::from(u32_at(start, 0x230)?)
    } else {
        ONE_MIB
    };
    if relocatable && !alignment.is_power_of_two() {
        return Some(fail(format!(
            "bzImage: kernel_alignment {alignment:#x} is no power of two"
        )));
    }
    let (pref_address, init_size) = if since(0x020a) {
        (
            u64_at(start, 0x258)?,
            u64::from(u32_at(start, 0x260)?).max(kernel_size),
        )
    } else {
        (ONE_MIB, kernel_size)
    };
    if pref_address.checked_add(init_size).is_none() {
        return Some(fail(format!(
            "bzImage: pref_address {pref_address:#x} wraps"
        )));
    }
    let end = (HEADER_END + usize::from(*start.get(0x201)?)).min(HEADER_LIMIT);
    Some(Ok(KernelHeader::BzImage(BzImage {
        version,
        setup_size,
        kernel_size,
        init_size,
        pref_address,
        relocatable,
        alignment,
        cmdline_size: if since(0x0206) {
            u64::from(u32_at(start, 0x238)?)
        } else {
            DEFAULT_CMDLINE_SIZE
        },
        initrd_addr_max: if since(0x0203) {
            u64::from(u32_at(start, 0x22c)?)
        } else {
            DEFAULT_INITRD_MAX
        },
        xloadflags: if since(0x020c) {
            u16_at(start, 0x236)?
        } else {
            0
        },
        header: start.get(HEADER..end)?.to_vec(),
    })))
}

impl BzImage {
    /// A field of the setup header, by its offset in the image.
    fn at(&self, offset: usize) -> Option<&[u8]> {
        self.header.get(offset.checked_sub(HEADER)?..)
    }

    /// The 64-bit entry, when it is loaded where it prefers.
    #[must_use]
    pub fn entry_64(&self) -> Option<u64> {
        // xloadflags bit 0, XLF_KERNEL_64; the entry is 0x200 behind the start.
        (self.xloadflags & 1 != 0).then(|| self.pref_address.saturating_add(0x200))
    }

    /// Where the version text stands in the image (`kernel_version`).
    #[must_use]
    pub fn version_offset(&self) -> Option<u64> {
        let pointer = u64::from(u16_at(self.at(0x20e)?, 0)?);
        let offset = pointer.checked_add(0x200)?;
        (pointer != 0 && offset < self.setup_size).then_some(offset)
    }

    /// Offset and size of the packed kernel in the image (`payload_offset`, protocol 2.08).
    #[must_use]
    pub fn payload(&self) -> Option<(u64, u64)> {
        let field = |offset| u32_at(self.at(offset)?, 0).map(u64::from);
        let (start, size) = (field(0x248)?, field(0x24c)?);
        let fits = self.version >= 0x0208 && start.checked_add(size)? <= self.kernel_size;
        (fits && size > 0).then(|| Some((self.setup_size.checked_add(start)?, size)))?
    }
}
