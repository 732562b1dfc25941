//! Kernels as distributions pack them: gzip, zstd, xz, lzma, lz4, and EFI zboot images around one of these.
//!
//! Works on content, serves every architecture, and trusts nothing: the unpacked kernel may be neither
//! larger than guest RAM nor than [`MAX_UNPACKED`](super::MAX_UNPACKED), what a decoder keeps of it is bounded
//! by [`MAX_WINDOW`], and a packed file in a packed file ends after [`MAX_LAYERS`].

use std::io::{self, Cursor};

use arch::BootError;
use arch::kernel::KernelImage;

mod bounds;
mod lz4;
mod zstd;

use self::bounds::{Limit, MAX_WINDOW, Part};

/// A packed zboot image in a packed file is more than anybody makes.
const MAX_LAYERS: usize = 3;
/// What an xz or lzma decoder may take besides, in KiB.
const DECODER_KIB: u64 = 4 << 10;

/// The header of a zboot image (Linux drivers/firmware/efi/libstub/zboot-header.S): "MZ", then at 4
/// "zimg", at 8 the payload's offset, at 12 its size, at 24 the name of its compression.
const ZBOOT_HEADER: usize = 64;
const ZBOOT_METHOD: usize = 24;

/// How something is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Gzip,
    Zstd,
    Xz,
    /// lzma-alone, as xz calls it.
    Lzma,
    /// The older format, `lz4 -l`: that of kernels.
    Lz4,
    /// What `lz4` writes by itself.
    Lz4Frame,
    /// Known and not unpacked.
    Bzip2,
    Lzo,
}

/// How packed data begins (Linux lib/decompress.c).
const MAGIC: [(&[u8], Method); 8] = [
    (b"\x1f\x8b", Method::Gzip),
    (b"\x28\xb5\x2f\xfd", Method::Zstd),
    (b"\xfd7zXZ\0", Method::Xz),
    (&lz4::MAGIC, Method::Lz4),
    (b"\x04\x22\x4d\x18", Method::Lz4Frame),
    (b"\x89LZO", Method::Lzo),
    (b"\x5d\0\0", Method::Lzma),
    (b"BZh", Method::Bzip2),
];

impl Method {
    fn of(start: &[u8]) -> Option<Self> {
        let found = MAGIC.iter().find(|(magic, _)| start.starts_with(magic));
        found.map(|(_, method)| *method)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Lz4 | Self::Lz4Frame => "lz4",
            Self::Bzip2 => "bzip2",
            Self::Lzo => "lzo",
        }
    }
}

/// Unpacks an image of at most `limit` bytes; gives back what is not packed, or in a way that is only known
/// by name.
///
/// # Errors
/// When the packed data is damaged, too large, or a zboot image is packed in a way that is not known.
pub(crate) fn unpack(mut image: KernelImage, limit: u64) -> Result<KernelImage, BootError> {
    for _ in 0..MAX_LAYERS {
        let Some(payload) = Payload::find(&image)? else {
            return Ok(image);
        };
        let bytes = payload.unpack(&image, limit)?;
        image = KernelImage::Bytes(Cursor::new(bytes.into()));
    }
    Ok(image)
}

/// How what lies at `offset` is packed, by its first bytes; `None`: not, or in a way that nobody knows.
pub(crate) fn packing(image: &KernelImage, offset: u64) -> Result<Option<&'static str>, BootError> {
    let start = start(image, offset)?;
    if start.starts_with(b"MZ\0\0zimg") {
        return Ok(Some("EFI zboot"));
    }
    Ok(Method::of(&start).map(Method::name))
}

/// Unpacks a part of an image; `None` when it is packed in a way that is not known here.
pub(crate) fn unpack_part(
    image: &KernelImage,
    offset: u64,
    size: u64,
    limit: u64,
) -> Result<Option<Vec<u8>>, BootError> {
    let method = match Method::of(&start(image, offset)?) {
        None | Some(Method::Bzip2 | Method::Lzo) => return Ok(None),
        Some(method) => method,
    };
    let payload = Payload {
        method,
        offset,
        size,
    };
    payload.unpack(image, limit).map(Some)
}

/// The bytes at `offset` that tell how something is packed, or fewer at the image's end.
fn start(image: &KernelImage, offset: u64) -> Result<Vec<u8>, BootError> {
    let size = image.size().map_err(BootError::Read)?;
    let known = size.saturating_sub(offset).min(ZBOOT_HEADER as u64);
    let mut start = vec![0; usize::try_from(known).unwrap_or_default()];
    image
        .read_exact_at(&mut start, offset)
        .map_err(BootError::Read)?;
    Ok(start)
}

/// Where the packed data lies in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Payload {
    method: Method,
    offset: u64,
    size: u64,
}

impl Payload {
    fn find(image: &KernelImage) -> Result<Option<Self>, BootError> {
        let size = image.size().map_err(BootError::Read)?;
        let start = start(image, 0)?;
        if start.starts_with(b"MZ") && start.get(4..8) == Some(b"zimg") {
            return Self::zboot(&start, image, size).map(Some);
        }
        Ok(match Method::of(&start) {
            // What they are is said where the image is identified.
            None | Some(Method::Bzip2 | Method::Lzo) => None,
            Some(method) => Some(Self {
                method,
                offset: 0,
                size,
            }),
        })
    }

    fn zboot(header: &[u8], image: &KernelImage, image_size: u64) -> Result<Self, BootError> {
        let damaged = || BootError::WrongFile {
            cause: "zboot image: the header is damaged, or the file ends before its payload"
                .to_owned(),
            cure: COPY_AGAIN.to_owned(),
        };
        let field = |offset: usize| {
            let bytes = header.get(offset..)?.first_chunk::<4>()?;
            Some(u64::from(u32::from_le_bytes(*bytes)))
        };
        let (offset, size) = field(8).zip(field(12)).ok_or_else(damaged)?;
        if offset + size > image_size {
            return Err(damaged());
        }
        let name = header.get(ZBOOT_METHOD..).ok_or_else(damaged)?;
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        // The names are those of Linux' scripts/Makefile.lib; zstd comes with its level.
        let method = match name {
            b"gzip" => Method::Gzip,
            b"lz4" => Method::of(&start(image, offset)?)
                .filter(|method| *method == Method::Lz4Frame)
                .unwrap_or(Method::Lz4),
            b"lzma" => Method::Lzma,
            b"xz" | b"xzkern" => Method::Xz,
            _ if name.starts_with(b"zstd") => Method::Zstd,
            _ => {
                return Err(BootError::WrongFile {
                    cause: format!(
                        "zboot image packed with {:?}; gzip, lz4, lzma, xz and zstd are known",
                        String::from_utf8_lossy(name)
                    ),
                    cure:
                        "give the kernel that it was made from (arch/*/boot/Image in the kernel's \
                           build), or build it with CONFIG_KERNEL_GZIP"
                            .to_owned(),
                });
            }
        };
        Ok(Self {
            method,
            offset,
            size,
        })
    }

    fn unpack(self, image: &KernelImage, limit: u64) -> Result<Vec<u8>, BootError> {
        let mut packed = Part {
            image,
            offset: self.offset,
            left: self.size,
            starved: false,
            failed: None,
        };
        let limit = Limit::new(limit);
        let found = match self.method {
            Method::Gzip => limit.read(flate2::read::GzDecoder::new(&mut packed)),
            Method::Zstd => zstd::unpack(&mut packed, limit),
            Method::Xz => limit.read(lzma_rust2::XzReader::new_mem_limit(
                &mut packed,
                false,
                decoder_kib(),
            )),
            Method::Lzma => lzma_rust2::LzmaReader::new_mem_limit(&mut packed, decoder_kib(), None)
                .and_then(|decoder| limit.read(decoder)),
            Method::Lz4 => lz4::unpack(&mut packed, limit),
            Method::Lz4Frame => lz4::unpack_frame(&mut packed, limit),
            Method::Bzip2 | Method::Lzo => Err(io::ErrorKind::Unsupported.into()),
        };
        match found {
            Ok(bytes) if bytes.len() as u64 > limit.0 => Err(limit.exceeded()),
            Ok(bytes) if bytes.is_empty() => Err(self.damaged(packed.offset, "nothing is in it")),
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(self.failed(packed, limit, &error)),
        }
    }

    fn failed(self, packed: Part<'_>, limit: Limit, error: &io::Error) -> BootError {
        if let Some(error) = packed.failed {
            return BootError::Read(error);
        }
        let why = match error.kind() {
            io::ErrorKind::OutOfMemory => return self.too_wide(),
            io::ErrorKind::FileTooLarge => return limit.exceeded(),
            io::ErrorKind::UnexpectedEof => "it ends too early",
            // The decoders' own words are for those who know the format.
            _ => "what follows is not what packing gives, or its checksum is wrong",
        };
        self.damaged(packed.offset, why)
    }

    fn damaged(self, near: u64, why: &str) -> BootError {
        let name = self.method.name();
        BootError::WrongFile {
            cause: format!("the {name}-packed kernel is damaged near byte {near}: {why}"),
            cure: COPY_AGAIN.to_owned(),
        }
    }

    fn too_wide(self) -> BootError {
        let cure = match self.method {
            Method::Xz => "unpack it (xz -dc FILE > KERNEL), or pack it with less (xz -9)",
            Method::Lzma => "unpack it (xz --format=lzma -dc FILE > KERNEL)",
            _ => "unpack it (zstd --long=31 -dc FILE > KERNEL), or pack it with less (zstd -19)",
        };
        BootError::WrongFile {
            cause: format!(
                "the {}-packed kernel wants a window of more than {} MiB for its unpacking",
                self.method.name(),
                MAX_WINDOW >> 20
            ),
            cure: cure.to_owned(),
        }
    }
}

const COPY_AGAIN: &str = "copy, download or build the kernel again";

fn decoder_kib() -> u32 {
    u32::try_from((MAX_WINDOW >> 10) + DECODER_KIB).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
