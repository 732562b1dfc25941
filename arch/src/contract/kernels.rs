//! Where kernels go.

use super::machines::{GIB, MIB, PAGE, config, plan};
use crate::kernel::{BzImage, Elf, FlatImage, ImageMachine, KernelHeader, Protocol, Segment};
use crate::{AddressRange, Platform};

/// A kernel of each format, of so many bytes, that asks for `base`.
fn kernels(size: u64, base: u64) -> Vec<KernelHeader> {
    let image = |machine| {
        KernelHeader::Image(FlatImage {
            machine,
            text_offset: 0,
            entry_offset: 0,
            file_size: size,
            memory_size: size,
        })
    };
    let segment = Segment {
        offset: 0,
        file_size: size,
        address: base,
        memory_size: size,
    };
    let images = ImageMachine::ALL.iter().map(|&machine| image(machine));
    let others = [
        KernelHeader::Elf(Elf {
            entry: base,
            pvh_entry: Some(base),
            segments: vec![segment],
        }),
        KernelHeader::BzImage(BzImage {
            version: 0x20f,
            setup_size: 0x400,
            kernel_size: size,
            init_size: size,
            pref_address: base,
            relocatable: true,
            alignment: 2 * MIB,
            cmdline_size: 2047,
            initrd_addr_max: u64::from(u32::MAX),
            xloadflags: 1,
            header: Vec::new(),
        }),
    ];
    images.chain(others).collect()
}

/// A kernel goes into the kernel window as a whole and is entered inside, or is refused; one for
/// another machine is refused by its name.
///
/// # Panics
/// When it is not.
pub fn kernels_have_their_place<P: Platform>(platform: &P, protocols: &[Protocol]) {
    let mut placed = 0;
    for memory in [16 * MIB, 256 * MIB, 5 * GIB] {
        let plan = plan(platform, &config(memory, 1));
        let window = plan.kernel_window;
        let sizes = [PAGE, 7 * MIB, window.len, window.len + 1, 1 << 62, u64::MAX];
        for (size, base) in sizes.into_iter().flat_map(|size| {
            [window.base, window.end() - PAGE, 0, !(PAGE - 1)].map(|base| (size, base))
        }) {
            for header in kernels(size, base) {
                let Ok(kernel) = platform.place_kernel(&header, &plan) else {
                    continue;
                };
                let range = kernel.range;
                assert!(
                    window.contains(&range) && range.len >= size,
                    "{header:?} is placed outside the window: {kernel:x?}"
                );
                assert!(
                    range.contains(&AddressRange::new(kernel.entry, 1)),
                    "the entry lies outside the kernel: {kernel:x?}"
                );
                assert!(protocols.contains(&kernel.protocol), "{kernel:x?}");
                placed += 1;
            }
        }
        let foreign = KernelHeader::Other {
            name: "z80 ELF".to_owned(),
            architecture: None,
        };
        match platform.place_kernel(&foreign, &plan) {
            Err(error) => assert!(
                error.to_string().contains("z80 ELF"),
                "the z80 ELF is not named: {error}"
            ),
            Ok(kernel) => panic!("a z80 ELF has a place: {kernel:x?}"),
        }
    }
    assert!(placed > 0, "no kernel has a place");
}
