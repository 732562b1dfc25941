//! Kernels as distributions pack them: gzip, zstd, and EFI zboot images around one of these.
//!
//! Works on content, serves every architecture, and trusts nothing: the unpacked kernel may not be
//! larger than guest RAM, and a packed file in a packed file ends after [`MAX_LAYERS`].

use std::io::{self, Cursor, Read};

use arch::BootError;
use arch::kernel::KernelImage;

/// A packed zboot image in a packed file is more than anybody makes.
const MAX_LAYERS: usize = 3;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The header of a zboot image (Linux drivers/firmware/efi/libstub/zboot-header.S): "MZ", then at 4
/// "zimg", at 8 the payload's offset, at 12 its size, at 24 the name of its compression.
const ZBOOT_HEADER: usize = 64;
const ZBOOT_METHOD: usize = 24;

/// Unpacks an image of at most `limit` bytes; gives back what is not packed.
///
/// # Errors
/// When the packed data is damaged, too large, or packed in a way that is not known.
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

/// How what lies at `offset` is packed, by its first bytes (Linux lib/decompress.c); `None`: not, or in
/// a way that nobody knows.
pub(crate) fn packing(image: &KernelImage, offset: u64) -> Result<Option<&'static str>, BootError> {
    let mut start = [0; 8];
    let left = image
        .size()
        .map_err(BootError::Read)?
        .saturating_sub(offset);
    if left < start.len() as u64 {
        return Ok(None);
    }
    let read = image.read_exact_at(&mut start, offset);
    read.map_err(BootError::Read)?;
    let known: [(&[u8], &str); 8] = [
        (&GZIP, "gzip"),
        (&ZSTD, "zstd"),
        (b"MZ\0\0zimg", "EFI zboot"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x02!L\x18", "lz4"),
        (b"\x89LZO", "lzo"),
        (b"\x5d\0\0", "lzma"),
        (b"BZh", "bzip2"),
    ];
    let found = known.iter().find(|(magic, _)| start.starts_with(magic));
    Ok(found.map(|(_, name)| *name))
}

/// Unpacks a part of an image; `None` when it is packed in a way that is not known here.
pub(crate) fn unpack_part(
    image: &KernelImage,
    offset: u64,
    size: u64,
    limit: u64,
) -> Result<Option<Vec<u8>>, BootError> {
    let method = match packing(image, offset)? {
        Some("gzip") => Method::Gzip,
        Some("zstd") => Method::Zstd,
        _ => return Ok(None),
    };
    let payload = Payload {
        method,
        offset,
        size,
    };
    payload.unpack(image, limit).map(Some)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Gzip,
    Zstd,
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
        let mut start = [0; ZBOOT_HEADER];
        let known = usize::try_from(size).unwrap_or(usize::MAX).min(start.len());
        let start = &mut start[..known];
        image.read_exact_at(start, 0).map_err(BootError::Read)?;
        let whole = |method| {
            Ok(Some(Self {
                method,
                offset: 0,
                size,
            }))
        };
        if start.starts_with(&GZIP) {
            whole(Method::Gzip)
        } else if start.starts_with(&ZSTD) {
            whole(Method::Zstd)
        } else if start.starts_with(b"MZ") && start.get(4..8) == Some(b"zimg") {
            Self::zboot(start, size).map(Some)
        } else {
            Ok(None)
        }
    }

    fn zboot(header: &[u8], image: u64) -> Result<Self, BootError> {
        let damaged = || BootError::Kernel("zboot image: the header is damaged".to_owned());
        let field = |offset: usize| {
            let bytes = header.get(offset..)?.first_chunk::<4>()?;
            Some(u64::from(u32::from_le_bytes(*bytes)))
        };
        let (offset, size) = field(8).zip(field(12)).ok_or_else(damaged)?;
        if offset + size > image {
            return Err(damaged());
        }
        let name = header.get(ZBOOT_METHOD..).ok_or_else(damaged)?;
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        // Linux names zstd with its level.
        let method = match name {
            b"gzip" => Method::Gzip,
            _ if name.starts_with(b"zstd") => Method::Zstd,
            _ => {
                return Err(BootError::Kernel(format!(
                    "zboot image packed with {:?}; gzip and zstd are known",
                    String::from_utf8_lossy(name)
                )));
            }
        };
        Ok(Self {
            method,
            offset,
            size,
        })
    }

    fn unpack(self, image: &KernelImage, limit: u64) -> Result<Vec<u8>, BootError> {
        let packed = Part {
            image,
            offset: self.offset,
            left: self.size,
        };
        let damaged = |what: &str, cause: String| {
            BootError::Kernel(format!("{what}-packed kernel is damaged: {cause}"))
        };
        let mut bytes = Vec::new();
        // One byte more than allowed tells "too large" from "just right".
        let most = limit.saturating_add(1);
        match self.method {
            Method::Gzip => flate2::read::GzDecoder::new(packed)
                .take(most)
                .read_to_end(&mut bytes)
                .map_err(|error| damaged("gzip", error.to_string()))?,
            Method::Zstd => ruzstd::decoding::StreamingDecoder::new(packed)
                .map_err(|error| damaged("zstd", error.to_string()))?
                .take(most)
                .read_to_end(&mut bytes)
                .map_err(|error| damaged("zstd", error.to_string()))?,
        };
        if bytes.len() as u64 > limit {
            return Err(BootError::TooLarge {
                what: "the unpacked kernel",
                size: bytes.len() as u64,
                cause: "it is larger than guest RAM".to_owned(),
            });
        }
        Ok(bytes)
    }
}

/// A part of an image as a stream.
struct Part<'a> {
    image: &'a KernelImage,
    offset: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX);
        let len = len.min(buffer.len());
        let (part, _) = buffer.split_at_mut(len);
        self.image.read_exact_at(part, self.offset)?;
        self.offset += len as u64;
        self.left -= len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        compress_to_vec(data, CompressionLevel::Fastest)
    }

    fn zboot(method: &str, payload: &[u8]) -> Vec<u8> {
        let mut image = b"MZ\0\0zimg".to_vec();
        image.extend(64u32.to_le_bytes());
        image.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.resize(ZBOOT_METHOD, 0);
        image.extend(method.bytes());
        image.resize(64, 0);
        image.extend(payload);
        image.extend([0; 100]);
        image
    }

    fn unpacked(bytes: Vec<u8>, limit: u64) -> Result<Vec<u8>, String> {
        let image = KernelImage::Bytes(Cursor::new(bytes.into()));
        match unpack(image, limit) {
            Ok(KernelImage::Bytes(bytes)) => Ok(bytes.into_inner().into_owned()),
            Ok(KernelImage::File(_)) => Err("a file".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    const KERNEL: [u8; 5000] = [0x42; 5000];

    #[test]
    fn every_way_of_packing_gives_the_kernel_back() {
        for image in [
            KERNEL.to_vec(),
            gzip(&KERNEL),
            zstd(&KERNEL),
            zboot("gzip", &gzip(&KERNEL)),
            zboot("zstd22", &zstd(&KERNEL)),
            gzip(&zboot("gzip", &gzip(&KERNEL))),
        ] {
            assert_eq!(unpacked(image, 5000).unwrap(), KERNEL);
        }
    }

    #[test]
    fn r28_what_is_damaged_or_grows_without_a_bound_is_refused() {
        let bomb = vec![0; 1 << 20];
        for packed in [gzip(&bomb), zstd(&bomb)] {
            let error = unpacked(packed, 4096).unwrap_err();
            assert!(error.contains("larger than guest RAM"), "{error}");
        }
        for packed in [gzip(&KERNEL), zstd(&KERNEL)] {
            let half = packed[..packed.len() / 2].to_vec();
            let error = unpacked(half, 5000).unwrap_err();
            assert!(error.contains("damaged"), "{error}");
        }
        for (method, text) in [("lz4", "\"lz4\""), ("xzkern", "\"xzkern\"")] {
            let error = unpacked(zboot(method, &[1]), 5000).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        let mut beyond = zboot("gzip", &gzip(&KERNEL));
        beyond[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(unpacked(beyond, 5000).unwrap_err().contains("damaged"));
        assert!(
            unpacked(b"MZ\0\0zimg".to_vec(), 5000)
                .unwrap_err()
                .contains("damaged")
        );
    }
}
