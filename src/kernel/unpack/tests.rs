#![allow(clippy::unwrap_used)]

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

/// What the tools made of [`calls`]: `xz --check=crc32 --lzma2=dict=1MiB` with the BCJ filter of the kernel's
/// architecture (as Linux does it), twice, `--check=sha256`, `--lzma2=dict=1GiB`; `lzma -9`; `lz4 -l -9` (as Linux does it), `lz4 -9`;
/// `zstd -19`, and with `--long=31` from a pipe.
const XZ_CALLS: &[u8] = include_bytes!("../../../fuzz/seeds/packed/xz-bcj");
const XZ_BRANCHES: &[u8] = include_bytes!("../../../fuzz/seeds/packed/xz-bcj-branches");
const XZ_SHA256: &[u8] = include_bytes!("fixtures/xz-sha256");
const XZ_WIDE: &[u8] = include_bytes!("fixtures/xz-wide");
const LZMA: &[u8] = include_bytes!("../../../fuzz/seeds/packed/lzma");
const LZ4: &[u8] = include_bytes!("../../../fuzz/seeds/packed/lz4");
const LZ4_FRAME: &[u8] = include_bytes!("../../../fuzz/seeds/packed/lz4-frame");
const ZSTD: &[u8] = include_bytes!("fixtures/zstd-sum");
const ZSTD_WIDE: &[u8] = include_bytes!("fixtures/zstd-wide");
const BZIP2: &[u8] = include_bytes!("fixtures/bzip2");

/// Relative calls and branches, whose targets the filters for code turn into absolute ones.
fn calls() -> Vec<u8> {
    let call = |index: u32| {
        let near_call = 1000 - i32::try_from(index).unwrap();
        let branch = 0x9400_0000 | index;
        [
            &[0xe8][..],
            &near_call.to_le_bytes(),
            b"BCD",
            &branch.to_le_bytes(),
            b"UUUU",
        ]
        .concat()
    };
    (0..256).flat_map(call).collect()
}

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
    for (method, text) in [("lzo", "\"lzo\""), ("", "\"\"")] {
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

/// With the size that Linux' build lets follow.
fn with_size(packed: &[u8]) -> Vec<u8> {
    let size = u32::try_from(calls().len()).unwrap();
    [packed, &size.to_le_bytes()].concat()
}

#[test]
fn what_the_tools_pack_is_unpacked() {
    let calls = calls();
    for packed in [XZ_CALLS, XZ_BRANCHES, XZ_SHA256, LZMA, LZ4, LZ4_FRAME, ZSTD] {
        let name = packing(&KernelImage::Bytes(Cursor::new(packed.into())), 0);
        let name = name.unwrap().unwrap();
        for whole in [packed.to_vec(), with_size(packed)] {
            assert_eq!(unpacked(whole, 4096).unwrap(), calls, "{name}");
        }
        let error = unpacked(packed.to_vec(), 4095).unwrap_err();
        assert!(error.contains("larger than guest RAM"), "{name}: {error}");
        for size in [1, 0] {
            let image = [b"before", packed, b"behind"].concat();
            let image = KernelImage::Bytes(Cursor::new(image.into()));
            let part = unpack_part(&image, 6, packed.len() as u64 * size, 4096);
            assert_eq!(part.is_ok(), size == 1, "{name}");
        }
    }
    for (method, packed) in [
        ("xzkern", XZ_BRANCHES),
        ("xz", XZ_CALLS),
        ("lzma", LZMA),
        ("lz4", LZ4),
        ("lz4", LZ4_FRAME),
    ] {
        assert_eq!(unpacked(zboot(method, packed), 4096).unwrap(), calls);
        assert_eq!(unpacked(gzip(&zboot(method, packed)), 8192).unwrap(), calls);
    }
    // Files of the older lz4 may follow each other, and blocks too.
    let twice = unpacked([LZ4, LZ4].concat(), 8192).unwrap();
    assert_eq!(twice, [&calls[..], &calls].concat());
    assert_eq!(unpacked([LZ4, &LZ4[4..]].concat(), 8192).unwrap(), twice);
}

#[test]
fn what_is_known_by_name_only_is_left_as_it_is() {
    assert_eq!(unpacked(BZIP2.to_vec(), 4096).unwrap(), BZIP2);
    let image = KernelImage::Bytes(Cursor::new(BZIP2.into()));
    assert_eq!(packing(&image, 0).unwrap(), Some("bzip2"));
    assert_eq!(unpack_part(&image, 0, 10, 4096).unwrap(), None);
}

#[test]
fn r28_what_would_take_too_much_memory_is_refused_before_it_does() {
    let mut lzma = LZMA.to_vec();
    lzma[1..5].copy_from_slice(&(1u32 << 30).to_le_bytes());
    // All that is unpacked would be kept: a frame may say so, however short it is.
    let mut single = ZSTD[..4].to_vec();
    single.extend([0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0]);
    single.extend([0; 64]);
    for (packed, text) in [
        (XZ_WIDE.to_vec(), "window of more than 128 MiB"),
        (lzma, "window of more than 128 MiB"),
        (ZSTD_WIDE.to_vec(), "window of more than 128 MiB"),
        (single, "larger than"),
    ] {
        let error = unpacked(packed, 4096).unwrap_err();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn r28_truncation_at_any_length_is_said() {
    for packed in [
        XZ_CALLS,
        XZ_SHA256,
        LZMA,
        LZ4,
        LZ4_FRAME,
        ZSTD,
        &gzip(&calls()),
    ] {
        for len in 0..packed.len() {
            let short = packed[..len].to_vec();
            match unpacked(short.clone(), 4096) {
                // So short that nobody can say what it was.
                Ok(found) => assert!(len < 6 && found == short, "{len}"),
                Err(error) => assert!(error.contains("damaged near byte"), "{len}: {error}"),
            }
        }
    }
    let error = unpacked(LZ4[..300].to_vec(), 4096).unwrap_err();
    assert_eq!(
        error,
        "the lz4-packed kernel is damaged near byte 8: it ends too early"
    );
}

#[test]
fn r28_bits_that_flipped_end_in_an_answer() {
    let calls = calls();
    for (packed, checked) in [
        (XZ_CALLS, true),
        (XZ_SHA256, true),
        (ZSTD, true),
        (LZ4_FRAME, true),
        (&gzip(&calls)[..], true),
        (LZMA, false),
        (LZ4, false),
    ] {
        // Of the longer ones, which hardly shrink, fewer.
        let step = if packed.len() > 1000 { 23 } else { 1 };
        for bit in (0..packed.len() * 8).step_by(step) {
            let mut flipped = packed.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            match unpacked(flipped.clone(), 4096) {
                // The formats' magic numbers, and fields that nobody needs (gzip's time).
                Ok(found) if checked => assert!(found == calls || found == flipped, "{bit}"),
                Ok(found) => assert!(found.len() <= flipped.len().max(4096), "{bit}"),
                Err(error) => assert!(!error.is_empty()),
            }
        }
    }
}
