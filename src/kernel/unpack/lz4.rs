//! lz4, in the two formats that files have.
//!
//! Kernels are packed in the older one, "legacy" (lz4's doc/lz4_Frame_format.md): a magic number, then
//! blocks of 8 MiB, each after its packed size. It has no end, no sizes and no checksums; the build of
//! Linux lets the unpacked size follow (scripts/Makefile.lib, `size_append`).

use std::io::{self, Read};

use lz4_flex::block::{DecompressError, decompress_into};
use lz4_flex::frame::FrameDecoder;

use super::bounds::{Limit, Part};

/// The magic number of the older format.
pub(super) const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// Bytes of a block, unpacked.
const BLOCK: usize = 8 << 20;
/// Bytes of a block that could not be packed (LZ4_COMPRESSBOUND).
const MAX_PACKED: usize = BLOCK + BLOCK / 255 + 16;
/// Bytes of the size that may follow.
const SIZE: u64 = 4;

/// Unpacks the older format.
pub(super) fn unpack(packed: &mut Part<'_>, limit: Limit) -> io::Result<Vec<u8>> {
    let mut word = [0; 4];
    packed.read_exact(&mut word)?;
    if word != MAGIC {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    let mut block = Vec::new();
    while packed.left > 0 {
        packed.read_exact(&mut word)?;
        if word == MAGIC {
            // Files in this format may follow each other.
            continue;
        }
        let size = u32::from_le_bytes(word);
        if packed.left == 0 && u64::from(size) == bytes.len() as u64 {
            break;
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size == 0 || size > MAX_PACKED {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if size as u64 > packed.left {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        block.resize(size, 0);
        packed.read_exact(&mut block)?;
        let start = bytes.len();
        let left = limit.0.saturating_sub(start as u64);
        let room = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
        bytes.resize(start + room, 0);
        let to = bytes.get_mut(start..).unwrap_or_default();
        let written = decompress_into(&block, to).map_err(|error| match error {
            DecompressError::OutputTooSmall { .. } if room < BLOCK => io::ErrorKind::FileTooLarge,
            _ => io::ErrorKind::InvalidData,
        })?;
        bytes.truncate(start + written);
    }
    Ok(bytes)
}

/// Unpacks one frame of the newer format, which `lz4` writes by itself.
pub(super) fn unpack_frame(packed: &mut Part<'_>, limit: Limit) -> io::Result<Vec<u8>> {
    let found = limit.read(FrameDecoder::new(&mut *packed));
    // The decoder takes an end between blocks for the end of the frame.
    if packed.starved {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let bytes = found?;
    // And a block of nothing, too.
    if bytes.len() as u64 <= limit.0 && packed.left > SIZE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(bytes)
}
