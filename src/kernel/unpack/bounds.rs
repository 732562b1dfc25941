//! What bounds unpacking: a decoder sees a part of an image, and gives no more than a kernel may have.

use std::io::{self, Read};

use arch::BootError;
use arch::kernel::KernelImage;

use crate::kernel::MAX_UNPACKED;

/// How far back packed data may refer, in bytes. Linux packs kernels with 128 MiB at most (scripts/xz_wrap.sh,
/// and ZSTD_WINDOWLOG_MAX in lib/decompress_unzstd.c).
pub(super) const MAX_WINDOW: u64 = 128 << 20;

/// The most bytes that something may have, unpacked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit(pub(super) u64);

impl Limit {
    pub(super) fn new(asked: u64) -> Self {
        Self(asked.min(MAX_UNPACKED))
    }

    pub(super) fn exceeded(self) -> BootError {
        if self.0 == MAX_UNPACKED {
            return BootError::WrongFile {
                cause: format!(
                    "unpacked, it is larger than {} MiB, which no kernel is",
                    MAX_UNPACKED >> 20
                ),
                cure: "give a kernel without what is for debuggers (objcopy --strip-debug)"
                    .to_owned(),
            };
        }
        BootError::TooLarge {
            what: "the unpacked kernel",
            size: self.0.saturating_add(1),
            cause: "it is larger than guest RAM".to_owned(),
        }
    }

    /// All that a decoder gives, or one byte more than allowed, which tells "too large" from "just right".
    pub(super) fn read(self, decoder: impl Read) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        decoder
            .take(self.0.saturating_add(1))
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// A part of an image as a stream.
pub(super) struct Part<'a> {
    pub(super) image: &'a KernelImage,
    pub(super) offset: u64,
    pub(super) left: u64,
    /// Whether more was asked for than there is.
    pub(super) starved: bool,
    /// Why the image could not be read.
    pub(super) failed: Option<io::Error>,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX);
        let len = len.min(buffer.len());
        self.starved |= len == 0 && !buffer.is_empty();
        let (part, _) = buffer.split_at_mut(len);
        if let Err(error) = self.image.read_exact_at(part, self.offset) {
            let kind = error.kind();
            self.failed = Some(error);
            return Err(kind.into());
        }
        self.offset += len as u64;
        self.left -= len as u64;
        Ok(len)
    }
}
