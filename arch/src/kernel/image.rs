//! Flat kernel images with a 64-byte header: arm64 (Linux Documentation/arch/arm64/booting.rst) and
//! riscv64 (Documentation/arch/riscv/boot-image-header.rst). Both have the same first fields.

use super::{FlatImage, ImageMachine, KernelHeader, Protocol, Reader, fail, u64_at};
use crate::{AddressRange, BootError, LoadedKernel};

/// Size of the header.
const HEADER: u64 = 64;
/// Where a kernel goes that is too old to say (before Linux 3.17, booting.rst).
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// No kernel needs to lie further from a 2 MiB boundary (riscv64 lies as far), nor to be larger.
const MAX_TEXT_OFFSET: u64 = 2 << 20;
const MAX_SIZE: u64 = 4 << 30;

/// An Image lies its text offset above a multiple of this. (riscv64 counts the offset from the start of
/// RAM, which is one: what is a multiple itself asks for nothing.)
const ALIGNMENT: u64 = 2 << 20;

impl FlatImage {
    /// Places the kernel in `window`, as low as it may lie.
    ///
    /// # Errors
    /// When it does not fit there.
    pub fn place(&self, window: AddressRange) -> Result<LoadedKernel, BootError> {
        let size = self.memory_size.max(self.file_size);
        let base = window
            .base
            .checked_next_multiple_of(ALIGNMENT)
            .and_then(|base| base.checked_add(self.text_offset % ALIGNMENT));
        let range = base.map(|base| AddressRange::new(base, size));
        range
            .filter(|range| range.base.checked_add(size).is_some() && window.contains(range))
            .map(|range| LoadedKernel {
                entry: range.base,
                range,
                initrd_limit: None,
                protocol: Protocol::DeviceTree,
                setup_header: Vec::new(),
            })
            .ok_or_else(|| BootError::TooLarge {
                what: "the kernel",
                size,
                cause: format!(
                    "RAM for kernels is {:#x} to {:#x}",
                    window.base,
                    window.end()
                ),
            })
    }
}

/// The machine that the magic number at offset 56 names.
pub(super) fn machine(start: &[u8]) -> Option<ImageMachine> {
    match start.get(56..60)? {
        b"ARM\x64" => Some(ImageMachine::Arm64),
        b"RSC\x05" => Some(ImageMachine::Riscv64),
        _ => None,
    }
}

pub(super) fn parse(
    image: &Reader<'_>,
    start: &[u8],
    machine: ImageMachine,
) -> Result<KernelHeader, BootError> {
    let (Some(text_offset), Some(image_size), Some(flags)) =
        (u64_at(start, 8), u64_at(start, 16), u64_at(start, 24))
    else {
        return fail("Image: the header is truncated");
    };
    if image.size <= HEADER {
        return fail("Image: nothing follows the header");
    }
    if flags & 1 != 0 {
        return fail("Image: a big-endian kernel");
    }
    let (text_offset, memory_size) = match (image_size, machine) {
        // Before the field had a meaning it was 0, and the offset was fixed.
        (0, ImageMachine::Arm64) => (OLD_TEXT_OFFSET, image.size),
        _ => (text_offset, image_size.max(image.size)),
    };
    if text_offset > MAX_TEXT_OFFSET || memory_size > MAX_SIZE {
        return fail(format!(
            "Image: a text offset of {text_offset:#x} and a size of {memory_size:#x} bytes make no sense"
        ));
    }
    Ok(KernelHeader::Image(FlatImage {
        machine,
        text_offset,
        file_size: image.size,
        memory_size,
    }))
}
