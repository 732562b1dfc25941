//! Flat kernel images with a 64-byte header: arm64 (Linux Documentation/arch/arm64/booting.rst) and
//! riscv64 (Documentation/arch/riscv/boot-image-header.rst). Both have the same first fields.

use vm_memory::{Bytes, GuestAddress};

use super::at::FileReader;
use super::header::{FlatImage, ImageMachine, KernelHeader, Protocol};
use super::reader::{KernelImage, Reader, fail, u64_at};
use crate::{AddressRange, BootError, GuestRam, KernelPlacement};

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
    pub fn place(&self, window: AddressRange) -> Result<KernelPlacement, BootError> {
        let size = self.memory_size.max(self.file_size);
        let base = window
            .base
            .checked_next_multiple_of(ALIGNMENT)
            .and_then(|base| base.checked_add(self.text_offset % ALIGNMENT));
        let range = base.map(|base| AddressRange::new(base, size));
        range
            .filter(|range| range.base.checked_add(size).is_some() && window.contains(range))
            .filter(|_| self.entry_offset < size)
            .map(|range| KernelPlacement {
                entry: range.base.saturating_add(self.entry_offset),
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

    /// Copies the kernel to its place in guest memory, as [`Self::place`] gave it.
    ///
    /// # Errors
    /// When the image cannot be read or has become shorter.
    pub fn copy(
        &self,
        image: &mut KernelImage,
        kernel: &KernelPlacement,
        ram: &GuestRam,
    ) -> Result<(), BootError> {
        let place = GuestAddress(kernel.range.base);
        let size = usize::try_from(self.file_size).unwrap_or(usize::MAX);
        match image {
            KernelImage::File(file) => {
                ram.read_exact_volatile_from(place, &mut FileReader::new(file), size)
            }
            KernelImage::Bytes(bytes) => {
                let mut bytes = bytes.get_ref().as_ref();
                ram.read_exact_volatile_from(place, &mut bytes, size)
            }
        }
        .map_err(|source| BootError::Memory {
            what: "the kernel",
            source,
        })
    }
}

/// The machine that the magic number names.
pub(super) fn machine(start: &[u8]) -> Option<ImageMachine> {
    let magic = start.get(56..60)?;
    let mut all = ImageMachine::ALL.iter().copied();
    all.find(|machine| machine.magic() == magic)
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
        entry_offset: 0,
        file_size: image.size,
        memory_size,
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Cursor, Read, Seek, Write};

    use super::*;

    #[test]
    fn a_kernel_is_copied_whole_from_wherever_it_is() {
        let bytes: Vec<u8> = (0..10_000u16)
            .map(|number| number.to_le_bytes()[0])
            .collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        // Wherever it was read before.
        file.rewind().unwrap();
        file.read_exact(&mut [0; 100]).unwrap();
        let header = FlatImage {
            machine: ImageMachine::Arm64,
            text_offset: 0,
            entry_offset: 0,
            file_size: bytes.len() as u64,
            memory_size: 1 << 20,
        };
        let base = 0x20_0000;
        let kernel = header.place(AddressRange::new(base, 2 << 20)).unwrap();
        let in_memory = KernelImage::Bytes(Cursor::new(bytes.clone().into()));
        let mut short = KernelImage::Bytes(Cursor::new(bytes[..9_999].to_vec().into()));
        for mut image in [KernelImage::File(file), in_memory] {
            let ram = GuestRam::from_ranges(&[(GuestAddress(base), 2 << 20)]).unwrap();
            header.copy(&mut image, &kernel, &ram).unwrap();
            let mut copied = vec![0xff; bytes.len() + 1];
            ram.read_slice(&mut copied, GuestAddress(base)).unwrap();
            assert_eq!(copied.split_last(), Some((&0, &bytes[..])));
        }
        let ram = GuestRam::from_ranges(&[(GuestAddress(base), 2 << 20)]).unwrap();
        assert!(header.copy(&mut short, &kernel, &ram).is_err());
    }
}
