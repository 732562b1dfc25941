#![allow(clippy::unwrap_used)]

use std::io::Cursor;

use proptest::prelude::*;

use super::*;

fn identify(bytes: &[u8]) -> Result<KernelHeader, String> {
    let image = KernelImage::Bytes(Cursor::new(bytes.to_vec().into()));
    KernelHeader::identify(&image).map_err(|error| error.to_string())
}

fn put(image: &mut [u8], offset: usize, bytes: &[u8]) {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// An ELF with the PVH note at 0x200 and one segment of 0x1000 bytes at 1 MiB.
fn elf() -> Vec<u8> {
    let mut image = vec![0; 0x2000];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 16, &[2, 0, 62, 0, 1]);
    put(&mut image, 24, &0x10_0000u64.to_le_bytes());
    put(&mut image, 32, &64u64.to_le_bytes());
    put(&mut image, 54, &[56, 0, 2, 0]);
    let mut segment = |at: usize, kind: u32, offset: u64, address: u64, size: u64| {
        put(&mut image, at, &kind.to_le_bytes());
        put(&mut image, at + 8, &offset.to_le_bytes());
        put(&mut image, at + 24, &address.to_le_bytes());
        put(&mut image, at + 32, &size.to_le_bytes());
        put(&mut image, at + 40, &(size * 2).to_le_bytes());
    };
    segment(64, 1, 0x1000, 0x10_0000, 0x1000);
    segment(120, 4, 0x200, 0, 20);
    put(&mut image, 0x200, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    put(&mut image, 0x20c, b"Xen\0");
    put(&mut image, 0x210, &0x10_0040u32.to_le_bytes());
    image
}

/// A bzImage of protocol 2.15 with four setup sectors and 0x4000 bytes of kernel.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 5 * 512 + 0x4000];
    put(&mut image, 0x1f1, &[4]);
    put(&mut image, 0x1f4, &0x400u32.to_le_bytes());
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020fu16.to_le_bytes());
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x230, &0x20_0000u32.to_le_bytes());
    put(&mut image, 0x234, &[1]);
    put(&mut image, 0x236, &[0x3f]);
    put(&mut image, 0x238, &2047u32.to_le_bytes());
    put(&mut image, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut image, 0x260, &0x80_0000u32.to_le_bytes());
    image
}

#[test]
fn an_elf_kernel_is_found_with_its_pvh_entry() {
    let KernelHeader::Elf(elf) = identify(&elf()).unwrap() else {
        panic!("not an ELF")
    };
    assert_eq!((elf.entry, elf.pvh_entry), (0x10_0000, Some(0x10_0040)));
    assert_eq!(elf.segments.len(), 1);
    assert_eq!(elf.segments[0].memory_size, 0x2000);
}

#[test]
fn a_bzimage_is_found_with_everything_its_header_says() {
    let KernelHeader::BzImage(image) = identify(&bzimage()).unwrap() else {
        panic!("no bzImage")
    };
    assert_eq!(
        (image.version, image.setup_size, image.kernel_size),
        (0x20f, 2560, 0x4000)
    );
    assert_eq!(
        (image.pref_address, image.init_size),
        (0x100_0000, 0x80_0000)
    );
    assert_eq!((image.relocatable, image.alignment), (true, 0x20_0000));
    assert_eq!(
        (image.cmdline_size, image.initrd_addr_max),
        (2047, 0x7fff_ffff)
    );
    assert_eq!(image.xloadflags, 0x3f);
    assert_eq!(image.header.len(), 0x202 + 0x6a - 0x1f1);
}

#[test]
fn a_header_tells_entries_version_and_payload() {
    let mut image = bzimage();
    put(&mut image, 0x20e, &0x100u16.to_le_bytes());
    put(&mut image, 0x248, &0x80u32.to_le_bytes());
    put(&mut image, 0x24c, &0x1000u32.to_le_bytes());
    let parse = |image: &[u8]| match identify(image) {
        Ok(KernelHeader::BzImage(found)) => found,
        other => panic!("{other:?}"),
    };
    let found = parse(&image);
    assert_eq!(found.version_offset(), Some(0x300));
    assert_eq!(found.payload(), Some((2560 + 0x80, 0x1000)));
    let header = KernelHeader::BzImage(found);
    assert_eq!(header.entries(), [(Protocol::Linux64, 0x100_0200)]);
    assert_eq!(header.architecture(), Some("x86_64"));
    // Pointers that lead out of the image, and a kernel without a 64-bit entry.
    put(&mut image, 0x20e, &u16::MAX.to_le_bytes());
    put(&mut image, 0x248, &u32::MAX.to_le_bytes());
    put(&mut image, 0x236, &[0]);
    let found = parse(&image);
    assert_eq!((found.version_offset(), found.payload()), (None, None));
    assert_eq!(KernelHeader::BzImage(found).entries(), []);

    let mut image = elf();
    let entries = |image: &[u8]| identify(image).unwrap().entries();
    let pvh = (Protocol::Pvh, 0x10_0040);
    assert_eq!(entries(&image), [pvh, (Protocol::Linux64, 0x10_0000)]);
    put(&mut image, 24, &0xffff_ffff_8020_0000u64.to_le_bytes());
    assert_eq!(entries(&image), [pvh]);
}

#[test]
fn r28_setup_sects_0_means_4_and_255_needs_the_bytes() {
    let mut image = bzimage();
    image[0x1f1] = 0;
    assert!(matches!(identify(&image), Ok(KernelHeader::BzImage(b)) if b.setup_size == 2560));
    image[0x1f1] = 255;
    assert!(identify(&image).unwrap_err().contains("truncated"));
}

#[test]
fn r28_crafted_elf_headers_are_refused_by_name() {
    let cases: [(usize, Vec<u8>, &str); 9] = [
        (56, vec![0xff, 0xff], "65535 program headers"),
        (54, vec![0], "program headers of 0 bytes"),
        (32, u64::MAX.to_le_bytes().to_vec(), "truncated"),
        (64 + 24, u64::MAX.to_le_bytes().to_vec(), "wraps"),
        (64 + 32, u64::MAX.to_le_bytes().to_vec(), "truncated"),
        (64 + 40, vec![1, 0], "larger than its memory"),
        (120 + 32, vec![1, 0, 1], "bytes of notes"),
        (0x210, vec![0xff; 4], "PVH entry"),
        (64, vec![2], "nothing to load"),
    ];
    for (offset, bytes, expected) in cases {
        let mut image = elf();
        put(&mut image, offset, &bytes);
        let error = identify(&image).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn the_entry_that_is_used_must_lie_in_a_segment() {
    // FreeBSD and NetBSD: a virtual address, and a PVH entry that counts.
    let mut image = elf();
    put(&mut image, 24, &0xffff_ffff_8020_0000u64.to_le_bytes());
    assert!(matches!(
        identify(&image),
        Ok(KernelHeader::Elf(Elf {
            pvh_entry: Some(0x10_0040),
            ..
        }))
    ));
    put(&mut image, 0x20c, b"Foo\0");
    assert!(
        identify(&image)
            .unwrap_err()
            .contains("outside every segment")
    );
}

#[test]
fn r28_overlapping_segments_are_refused() {
    let mut image = elf();
    let segment: Vec<u8> = image[64..120].to_vec();
    put(&mut image, 120, &segment);
    put(&mut image, 120 + 24, &0x10_1fffu64.to_le_bytes());
    assert!(identify(&image).unwrap_err().contains("overlap"));
}

#[test]
fn r28_notes_with_hostile_lengths_end_the_search() {
    for note in [[0xff; 12], [0; 12]] {
        let mut image = elf();
        put(&mut image, 0x200, &note);
        assert!(matches!(
            identify(&image),
            Ok(KernelHeader::Elf(Elf {
                pvh_entry: None,
                ..
            }))
        ));
    }
}

/// An arm64 Image of 4 KiB.
fn image(magic: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 4096];
    put(&mut image, 8, &0x1_0000u64.to_le_bytes());
    put(&mut image, 16, &0x20_0000u64.to_le_bytes());
    put(&mut image, 24, &[0xa]);
    put(&mut image, 56, magic);
    image
}

#[test]
fn a_flat_image_says_where_it_goes_and_what_it_occupies() {
    for (magic, machine) in [
        (b"ARM\x64", ImageMachine::Arm64),
        (b"RSC\x05", ImageMachine::Riscv64),
    ] {
        let found = identify(&image(magic)).unwrap();
        let expected = FlatImage {
            entry_offset: 0,
            machine,
            text_offset: 0x1_0000,
            file_size: 4096,
            memory_size: 0x20_0000,
        };
        assert_eq!(found, KernelHeader::Image(expected));
        assert_eq!(found.describe(), format!("{} Image", machine.name()));
    }
    // Before Linux 3.17 the header had no size, and the offset was fixed.
    let mut old = image(b"ARM\x64");
    put(&mut old, 8, &[0; 16]);
    let KernelHeader::Image(old) = identify(&old).unwrap() else {
        panic!("no Image");
    };
    assert_eq!((old.text_offset, old.memory_size), (0x8_0000, 4096));
    // Nothing else was fixed there: the loader goes by the header.
    let mut sizeless = image(b"RSC\x05");
    put(&mut sizeless, 8, &0x20_0000_u64.to_le_bytes());
    put(&mut sizeless, 16, &[0; 8]);
    let KernelHeader::Image(sizeless) = identify(&sizeless).unwrap() else {
        panic!("an Image");
    };
    assert_eq!(
        (sizeless.text_offset, sizeless.memory_size),
        (0x20_0000, 4096)
    );
}

#[test]
fn r28_hostile_image_headers_are_refused() {
    for (offset, bytes, expected) in [
        (8, u64::MAX.to_le_bytes(), "make no sense"),
        (16, u64::MAX.to_le_bytes(), "make no sense"),
        (24, 1u64.to_le_bytes(), "big-endian"),
    ] {
        let mut image = image(b"ARM\x64");
        put(&mut image, offset, &bytes);
        let error = identify(&image).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    assert!(
        identify(&image(b"ARM\x64")[..64])
            .unwrap_err()
            .contains("nothing follows")
    );
}

#[test]
fn kernels_for_other_machines_are_named() {
    let mut arm_elf = elf();
    arm_elf[18] = 183;
    let found = identify(&arm_elf).unwrap();
    assert_eq!(found.describe(), "arm64 ELF");
    for (machine, cure) in [
        ("x86_64", "on a host that is aarch64"),
        ("aarch64", "objcopy"),
    ] {
        let BootError::WrongFile { cause, cure: found } = found.refused(machine) else {
            panic!("another error");
        };
        assert!(
            cause.contains("arm64 ELF") && cause.contains(machine),
            "{cause}"
        );
        assert!(found.contains(cure), "{found}");
    }
    assert!(identify(b"").unwrap_err().contains("empty"));
    assert!(
        identify(b"hello")
            .unwrap_err()
            .contains("no known kernel format")
    );
}

#[test]
fn files_that_are_no_kernels_are_named_with_a_cure() {
    let at = |offset: usize, magic: &[u8]| {
        let mut file = vec![b'x'; 0x1_2000];
        put(&mut file, offset, magic);
        file
    };
    let mut unified = at(0, b"MZ");
    put(&mut unified, 0x250, b".linux\0\0");
    let mut partitioned = at(510, &[0x55, 0xaa]);
    put(&mut partitioned, 512, b"EFI PART");
    for (file, name, cure, initrd) in [
        (at(0, &[0x1f, 0x8b, 8]), "gzip", "gzip -dc", true),
        (at(0, &[4, 0x22, 0x4d, 0x18]), "lz4", "lz4 -dc", true),
        (at(0, b"BZh9"), "bzip2", "bzip2 -dc", true),
        (
            at(0, b"!<arch>\ndebian-binary"),
            "Debian",
            "dpkg-deb -x",
            false,
        ),
        (at(0, &[0xed, 0xab, 0xee, 0xdb]), "RPM", "rpm2cpio", false),
        (at(257, b"ustar"), "tar archive", "unpack", false),
        (at(0, b"070701"), "cpio", "initrd=FILE", true),
        (at(0, b"QFI\xfb"), "qcow2", "qemu-img convert", false),
        (at(0x8001, b"CD001"), "ISO 9660", "blk=FILE", false),
        (partitioned, "GPT", "blk=FILE", false),
        (at(510, &[0x55, 0xaa]), "disk image", "blk=FILE", false),
        (at(1080, &[0x53, 0xef]), "ext4", "blk=FILE", true),
        (at(0x1_0040, b"_BHRfS_M"), "btrfs", "blk=FILE", false),
        (unified, "unified kernel image", "objcopy", false),
        (at(0, b"MZ"), "EFI program", "kernel", false),
        (at(0, b"<!DOCTYPE html>"), "HTML", "download", false),
    ] {
        let image = KernelImage::Bytes(Cursor::new(file.into()));
        let found = foreign(&image).unwrap().unwrap();
        assert!(found.name.contains(name), "{name}: {found:?}");
        assert!(found.cure.contains(cure), "{name}: {found:?}");
        assert_eq!(found.initrd, initrd, "{name}");
        let error = KernelHeader::identify(&image).unwrap_err();
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
    for kernel in [elf(), bzimage(), image(b"ARM\x64")] {
        let found = identify(&kernel).unwrap();
        assert!(!matches!(found, KernelHeader::Other { .. }), "{found:?}");
    }
}

/// A note with the padding that makes what follows lie at multiples of `alignment`.
fn note(notes: &mut Vec<u8>, alignment: usize, name: &[u8], kind: u32, value: &[u8]) {
    for number in [name.len(), value.len()] {
        notes.extend(u32::try_from(number).unwrap().to_le_bytes());
    }
    notes.extend(kind.to_le_bytes());
    for part in [name, value] {
        notes.extend(part);
        notes.resize(notes.len().next_multiple_of(alignment), 0);
    }
}

/// The ELF with these segments of notes besides its own, which becomes one with nothing in it.
fn elf_with_notes(segments: &[(u64, &[u8])]) -> Vec<u8> {
    let mut image = elf();
    let all: u16 = 2 + u16::try_from(segments.len()).unwrap();
    put(&mut image, 56, &all.to_le_bytes());
    put(&mut image, 0x200, &[0; 20]);
    let mut offset = 0x400;
    for (index, (alignment, notes)) in segments.iter().enumerate() {
        let header = 176 + 56 * index;
        put(&mut image, header, &4u32.to_le_bytes());
        put(&mut image, header + 8, &(offset as u64).to_le_bytes());
        put(&mut image, header + 32, &(notes.len() as u64).to_le_bytes());
        put(&mut image, header + 48, &alignment.to_le_bytes());
        put(&mut image, offset, notes);
        offset += notes.len().next_multiple_of(16);
    }
    image
}

#[test]
fn r67_the_pvh_note_is_found_behind_others_and_with_either_padding() {
    let pvh = |image: &[u8]| match identify(image) {
        Ok(KernelHeader::Elf(elf)) => elf.pvh_entry,
        other => panic!("{other:?}"),
    };
    let entry = 0x10_0040u32.to_le_bytes();
    for alignment in [4, 8] {
        let mut notes = Vec::new();
        note(&mut notes, alignment, b"GNU\0", 5, &[1; 16]);
        note(&mut notes, alignment, b"Linux\0", 0x100, &[7; 9]);
        note(&mut notes, alignment, b"", 1, b"");
        note(&mut notes, alignment, b"Xen\0", 6, b"linux\0");
        // Of an odd size, so that it names no address.
        note(&mut notes, alignment, b"Xen\0", 18, &[1; 3]);
        note(&mut notes, alignment, b"Xen\0", 18, &entry);
        // What the program header says, what it leaves out, and what it says wrongly.
        for said in [alignment as u64, 0, 4, 8] {
            assert_eq!(
                pvh(&elf_with_notes(&[(said, &notes)])),
                Some(0x10_0040),
                "{alignment} {said}"
            );
        }
        let mut first = Vec::new();
        note(&mut first, 8, b"GNU\0", 5, &[2; 12]);
        let several = elf_with_notes(&[(8, &first), (4, &[]), (alignment as u64, &notes)]);
        assert_eq!(pvh(&several), Some(0x10_0040));
        assert_eq!(pvh(&elf_with_notes(&[(8, &first)])), None);
        for len in 0..notes.len() - 1 {
            let _ = identify(&elf_with_notes(&[(alignment as u64, &notes[..len])]));
        }
    }
    let mut wide = Vec::new();
    note(&mut wide, 8, b"Xen\0", 18, &0x10_0080u64.to_le_bytes());
    assert_eq!(pvh(&elf_with_notes(&[(8, &wide)])), Some(0x10_0080));
}

#[test]
fn r42_truncation_at_any_length_is_survived() {
    for image in [elf(), bzimage()] {
        for len in (0..image.len()).step_by(7) {
            let _ = identify(&image[..len]);
        }
        assert!(identify(&image[..0x210]).is_err());
    }
}

proptest! {
    #[test]
    fn r28_bit_flips_end_in_an_answer(
        flips in prop::collection::vec((0usize..0x300, any::<u8>()), 1..16),
        pe in any::<bool>(),
    ) {
        let mut image = if pe { bzimage() } else { elf() };
        for (offset, value) in flips {
            image[offset] ^= value;
        }
        if let Ok(KernelHeader::Elf(elf)) = identify(&image) {
            prop_assert!(!elf.segments.is_empty());
            for segment in elf.segments {
                prop_assert!(segment.offset + segment.file_size <= image.len() as u64);
                prop_assert!(segment.address.checked_add(segment.memory_size).is_some());
            }
        }
    }

    #[test]
    fn r28_random_bytes_end_in_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let _ = identify(&bytes);
    }
}

fn release(bytes: &[u8]) -> Option<String> {
    let image = KernelImage::Bytes(Cursor::new(bytes.to_vec().into()));
    KernelHeader::identify(&image).ok()?.linux_release(&image)
}

/// The ELF with three sections, the last two of them named, and a banner in `.rodata`.
fn elf_with_sections() -> Vec<u8> {
    let mut image = elf();
    put(&mut image, 40, &0x400u64.to_le_bytes());
    put(&mut image, 58, &[64, 0, 3, 0, 2, 0]);
    let mut section = |at: usize, name: u32, offset: u64, size: u64| {
        put(&mut image, at, &name.to_le_bytes());
        put(&mut image, at + 24, &offset.to_le_bytes());
        put(&mut image, at + 32, &size.to_le_bytes());
    };
    section(0x440, 1, 0x1000, 0x1000);
    section(0x480, 9, 0x600, 19);
    put(&mut image, 0x600, b"\0.rodata\0.shstrtab\0");
    put(
        &mut image,
        0x10e0,
        b"Linux version 6.12.95-cloud (me@here) #1\n\0",
    );
    image
}

#[test]
fn a_linux_says_its_version_at_a_known_place() {
    let mut packed = bzimage();
    assert_eq!(release(&packed), None);
    put(&mut packed, 0x201, &[0x6a]);
    put(&mut packed, 0x20e, &0x300u16.to_le_bytes());
    put(&mut packed, 0x500, b"6.1.0-56-amd64 (me@here)\0");
    assert_eq!(
        release(&packed).as_deref(),
        Some("6.1.0-56-amd64 (me@here)")
    );
    put(&mut packed, 0x500, b"Memtest86+ v6.10\0");
    assert_eq!(release(&packed), None);

    let found = release(&elf_with_sections());
    assert_eq!(found.as_deref(), Some("6.12.95-cloud (me@here) #1"));
    assert_eq!(release(&elf()), None);
}

#[test]
fn a_banner_is_not_searched_for() {
    let mut image = elf_with_sections();
    image.splice(0x1000..0x1000, vec![0; 0x4000]);
    // The section begins where it did, and is larger than what is looked at.
    put(&mut image, 0x440 + 32, &0x5000u64.to_le_bytes());
    assert_eq!(release(&image), None);
}

proptest! {
    #[test]
    fn hostile_section_headers_are_no_version(
        at in 0usize..200, value in any::<u64>(), bad in prop::sample::select(vec![40, 58, 60, 62, 0x440]),
    ) {
        let mut image = elf_with_sections();
        put(&mut image, bad + at % 8, &value.to_le_bytes());
        // Never a panic, never more than a few kilobytes.
        let _ = release(&image);
    }
}
