use super::*;

const WINDOW: AddressRange = AddressRange::new(0x10_0000, 0x7F0_0000);

fn bzimage() -> BzImage {
    BzImage {
        version: 0x020F,
        setup_size: 0x4000,
        kernel_size: 0x80_0000,
        init_size: 0x200_0000,
        pref_address: 0x100_0000,
        relocatable: true,
        alignment: 0x20_0000,
        cmdline_size: 2047,
        initrd_addr_max: 0x7FFF_FFFF,
        xloadflags: 1,
        header: vec![0; 0x70],
    }
}

fn segment(address: u64, memory_size: u64) -> Segment {
    Segment {
        offset: 0x1000,
        file_size: memory_size / 2,
        address,
        memory_size,
    }
}

fn elf() -> Elf {
    Elf {
        entry: 0x100_0000,
        pvh_entry: None,
        segments: vec![segment(0x100_0000, 0x1000), segment(0x200_0000, 0x5000)],
    }
}

fn place_image(image: BzImage) -> Result<KernelPlacement, BootError> {
    place(&KernelHeader::BzImage(image), WINDOW)
}

fn error(result: Result<KernelPlacement, BootError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_bzimage_goes_to_its_preferred_address_and_occupies_init_size() {
    let kernel = place_image(bzimage()).unwrap();
    assert_eq!(kernel.range, AddressRange::new(0x100_0000, 0x200_0000));
    assert_eq!(kernel.entry, 0x100_0200);
    assert_eq!(kernel.initrd_limit, Some(0x8000_0000));
    assert_eq!(kernel.protocol, Protocol::Linux64);
    assert_eq!(kernel.setup_header.len(), 0x70);
}

#[test]
fn a_relocatable_kernel_moves_up_to_an_aligned_address_in_the_window() {
    let image = BzImage {
        pref_address: 0x1000,
        ..bzimage()
    };
    assert_eq!(place_image(image.clone()).unwrap().range.base, 0x20_0000);
    let fixed = BzImage {
        relocatable: false,
        ..image
    };
    assert!(error(place_image(fixed)).contains("0x1000"));
}

#[test]
fn a_kernel_that_needs_more_than_the_window_is_refused() {
    let image = BzImage {
        init_size: WINDOW.len,
        ..bzimage()
    };
    assert!(error(place_image(image)).contains("RAM for kernels is"));
}

#[test]
fn hostile_bzimage_numbers_are_refused() {
    let max = u64::MAX;
    for image in [
        BzImage {
            init_size: max,
            ..bzimage()
        },
        BzImage {
            pref_address: max,
            ..bzimage()
        },
        BzImage {
            pref_address: max,
            relocatable: false,
            ..bzimage()
        },
        BzImage {
            alignment: max,
            ..bzimage()
        },
        BzImage {
            kernel_size: max,
            ..bzimage()
        },
        BzImage {
            kernel_size: 0,
            ..bzimage()
        },
    ] {
        assert!(place_image(image.clone()).is_err(), "{image:?}");
    }
    let odd = BzImage {
        alignment: 0,
        initrd_addr_max: max,
        ..bzimage()
    };
    assert_eq!(place_image(odd).unwrap().initrd_limit, Some(max));
}

#[test]
fn a_bzimage_without_a_64_bit_entry_is_refused() {
    let image = BzImage {
        xloadflags: 0,
        ..bzimage()
    };
    assert!(error(place_image(image)).contains("bzImage without a 64-bit entry"));
}

#[test]
fn an_elf_kernel_occupies_all_its_segments() {
    let kernel = place(&KernelHeader::Elf(elf()), WINDOW).unwrap();
    assert_eq!(kernel.range, AddressRange::new(0x100_0000, 0x100_5000));
    assert_eq!(
        (kernel.entry, kernel.protocol),
        (0x100_0000, Protocol::Linux64)
    );
    assert_eq!(kernel.initrd_limit, None);
}

#[test]
fn an_elf_kernel_with_a_pvh_note_is_entered_there() {
    let elf = Elf {
        pvh_entry: Some(0x200_0010),
        ..elf()
    };
    let kernel = place(&KernelHeader::Elf(elf), WINDOW).unwrap();
    assert_eq!((kernel.entry, kernel.protocol), (0x200_0010, Protocol::Pvh));
}

#[test]
fn elf_segments_outside_the_window_are_refused() {
    let place = |segments, entry| {
        place(
            &KernelHeader::Elf(Elf {
                entry,
                pvh_entry: None,
                segments,
            }),
            WINDOW,
        )
    };
    assert!(place(vec![segment(0x9000, 0x1000)], 0x9000).is_err());
    assert!(
        place(
            vec![segment(WINDOW.end() - 0x800, 0x1000)],
            WINDOW.end() - 1
        )
        .is_err()
    );
    assert!(place(vec![segment(u64::MAX - 1, 0x1000)], 0).is_err());
    assert!(place(vec![segment(0x10_0000, u64::MAX)], 0x10_0000).is_err());
    assert!(place(Vec::new(), 0).is_err());
    let greedy = Segment {
        file_size: u64::MAX,
        ..segment(0x10_0000, 0x1000)
    };
    assert!(place(vec![greedy], 0x10_0000).is_err());
}

#[test]
fn an_entry_outside_every_segment_is_refused() {
    let elf = Elf {
        entry: 0x180_0000,
        ..elf()
    };
    assert!(error(place(&KernelHeader::Elf(elf), WINDOW)).contains("0x1800000"));
}

#[test]
fn other_formats_are_named() {
    let other = KernelHeader::Other {
        name: "arm64 Image".to_owned(),
        architecture: Some("aarch64"),
    };
    assert!(error(place(&other, WINDOW)).contains("arm64 Image"));
}
