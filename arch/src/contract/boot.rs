//! Boot information, and how vCPUs start with it.

use super::machines::{GIB, Loaded, MIB, PAGE, apart, config, disjoint, size, variants};
use crate::kernel::Protocol;
use crate::{AddressRange, BootInfo, Lean, Platform};

/// Boot information lies in RAM, clear of kernel, initrd and of itself; it says where it is, writes
/// nowhere else, carries the command line, and is the same every time.
///
/// # Panics
/// When it does not.
pub fn boot_information_is_placed_well<P: Platform>(platform: &P, protocols: &[Protocol]) {
    for &protocol in protocols {
        for memory in [16 * MIB, 256 * MIB, 5 * GIB] {
            for (vcpus, with_initrd) in [(1, true), (8, false)] {
                let some = variants(&config(memory, vcpus));
                for config in some
                    .iter()
                    .filter(|c| c.lean == Lean::Off || memory == 256 * MIB)
                {
                    let mut loaded = Loaded::new(platform, config, protocol);
                    if !with_initrd {
                        loaded.initrd = None;
                    }
                    placed_well(platform, &loaded);
                }
            }
        }
        let mut long = config(256 * MIB, 1);
        long.cmdline.append = Some("x".repeat(size(MIB)));
        let loaded = Loaded::new(platform, &long, protocol);
        assert!(
            loaded.boot(platform).is_err(),
            "a command line of 1 MiB is refused"
        );
    }
}

fn placed_well<P: Platform>(platform: &P, loaded: &Loaded) {
    let before = loaded.read(AddressRange::new(loaded.plan.ram_start(), 16 * MIB));
    let boot = match loaded.boot(platform) {
        Ok(boot) => boot,
        Err(error) => panic!("{:?}: {error}", loaded.plan),
    };
    assert_eq!(boot.entry, loaded.kernel.entry);
    let blocks: Vec<_> = boot.placed.iter().map(|block| block.range).collect();
    disjoint("boot information", &blocks);
    let occupied: Vec<_> = loaded.occupied().collect();
    apart("boot information", &blocks, "kernel or initrd", &occupied);
    for block in &blocks {
        let in_ram = loaded.plan.ram.iter().any(|range| range.contains(block));
        assert!(in_ram, "{block:x?} lies outside RAM");
    }
    assert!(
        boot.arguments.iter().any(|&argument| blocks
            .iter()
            .any(|block| block.contains(&AddressRange::new(argument, 1)))),
        "none of the arguments {:x?} points to one of {blocks:x?}",
        boot.arguments
    );
    let contents: Vec<_> = blocks.iter().map(|block| loaded.read(*block)).collect();
    let cmdline = loaded.plan.cmdline.as_bytes();
    assert!(
        contents
            .iter()
            .any(|bytes| bytes.windows(cmdline.len()).any(|text| text == cmdline)),
        "the command line is nowhere"
    );

    // The first 16 MiB hold every block that there is; outside of them nothing has changed.
    let start = loaded.plan.ram_start();
    let after = loaded.read(AddressRange::new(start, 16 * MIB));
    for (offset, (old, new)) in (0u64..).zip(before.iter().zip(&after)) {
        if old != new {
            let byte = AddressRange::new(start + offset, 1);
            let placed = blocks.iter().any(|block| block.contains(&byte));
            assert!(placed, "{:#x} was written and is in no block", byte.base);
        }
    }

    let again = loaded.boot(platform).expect("it worked before");
    assert_eq!(boot, again);
    let same = blocks.iter().map(|block| loaded.read(*block)).eq(contents);
    assert!(same, "the second boot information differs from the first");
}

/// Every vCPU gets its registers, always the same, and only the first one starts the kernel.
///
/// # Panics
/// When one does not.
pub fn every_vcpu_can_be_configured<P: Platform>(platform: &P, protocols: &[Protocol]) {
    for &protocol in protocols {
        let loaded = Loaded::new(platform, &config(256 * MIB, 8), protocol);
        let boot = loaded.boot(platform).expect("boot information fits");
        for id in 0..loaded.plan.vcpus {
            let configure = |boot| match platform.configure_vcpu(id, &loaded.plan, boot) {
                Ok(setup) => setup,
                Err(error) => panic!("vCPU {id}: {error}"),
            };
            assert_eq!(configure(None), configure(None));
            let (first, waiting) = (configure(Some(&boot)), configure(None));
            assert_ne!(first, waiting, "vCPU {id} starts the kernel or waits");
            let elsewhere = BootInfo {
                entry: boot.entry + PAGE,
                ..boot.clone()
            };
            assert_ne!(first, configure(Some(&elsewhere)), "the entry counts");
        }
    }
}
