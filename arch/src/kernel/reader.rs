//! Reading an image, wherever it is: nothing beyond its size, which is asked for once.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Cursor};
use std::os::unix::fs::FileExt;

use crate::BootError;

/// A kernel image that can be read at any offset.
#[derive(Debug)]
pub enum KernelImage {
    /// A file on the host.
    File(File),
    /// An image in memory: the built-in guest, or what was unpacked.
    Bytes(Cursor<Cow<'static, [u8]>>),
}

impl KernelImage {
    /// Its size in bytes.
    ///
    /// # Errors
    /// When the file's metadata cannot be read.
    pub fn size(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata()?.len()),
            Self::Bytes(bytes) => Ok(bytes.get_ref().len() as u64),
        }
    }

    /// Fills `buffer` from `offset` on; short images are an error.
    ///
    /// # Errors
    /// `UnexpectedEof` when the image ends before the buffer is full.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(buffer, offset),
            Self::Bytes(bytes) => {
                let part = usize::try_from(offset)
                    .ok()
                    .and_then(|start| bytes.get_ref().get(start..)?.get(..buffer.len()));
                buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

/// The bytes at an image's start that tell its format.
pub(super) const PREFIX: u64 = 1024;

pub(super) fn fail<T>(why: impl Into<String>) -> Result<T, BootError> {
    Err(BootError::Kernel(why.into()))
}

/// An image and its size, which no read may exceed.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) image: &'a KernelImage,
    pub(super) size: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(image: &'a KernelImage) -> Result<Self, BootError> {
        Ok(Self {
            image,
            size: image.size().map_err(BootError::Read)?,
        })
    }

    /// The first `len` bytes, or all there are.
    pub(super) fn prefix(&self, len: u64) -> Result<Vec<u8>, BootError> {
        self.read(0, self.size.min(len))
    }

    /// `len` bytes from `offset` on. The caller bounds `len`.
    pub(super) fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, BootError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => {}
            _ => {
                return fail(format!(
                    "truncated: {len} bytes at offset {offset:#x} are missing"
                ));
            }
        }
        let len = usize::try_from(len).map_err(|_| BootError::Kernel("too large".to_owned()))?;
        let mut bytes = vec![0; len];
        self.image
            .read_exact_at(&mut bytes, offset)
            .map_err(BootError::Read)?;
        Ok(bytes)
    }
}

/// A little-endian field; `None` beyond the end.
fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    field(bytes, offset).map(u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    field(bytes, offset).map(u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    field(bytes, offset).map(u64::from_le_bytes)
}
