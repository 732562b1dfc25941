//! One process, many VMs, one after the other: none leaves anything behind.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use vmm_reference::{BalloonConfig, BlkConfig, Console, ExitReason, Vm, VmConfig, VsockConfig};

/// Lives until every allocator and cache has what it keeps.
const WARM_UP: usize = 30;
/// And after that. `VMM_TEST_LIVES` names another number.
const LIVES: usize = 90;
/// What a process may have more of than before, in bytes, for whatever number of lives.
const SLACK: u64 = 256 << 10;

/// What a process has.
#[derive(Debug)]
struct Kept {
    /// Memory of its own that is there, in bytes.
    memory: u64,
    mappings: usize,
    descriptors: usize,
    threads: usize,
}

impl Kept {
    fn now() -> Self {
        let count = |folder: &str| fs::read_dir(folder).unwrap().count();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let memory = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .unwrap();
        let kib: u64 = memory.trim().strip_suffix(" kB").unwrap().parse().unwrap();
        Self {
            memory: kib << 10,
            mappings: fs::read_to_string("/proc/self/maps")
                .unwrap()
                .lines()
                .count(),
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
        }
    }
}

#[test]
fn a_vm_that_has_ended_leaves_nothing_in_its_process() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = common::kernel(&common::RESET);
    let disk = folder.path().join("disk");
    fs::write(&disk, [0; 4096]).unwrap();
    let socket = folder.path().join("vsock");
    let config = VmConfig::default()
        .with_kernel(kernel.path())
        .with_vcpus(2)
        .with_disk(BlkConfig::new(&disk))
        .with_vsock(VsockConfig::new(3, &socket))
        .with_balloon(BalloonConfig::default())
        .with_console();
    let live = || {
        let vm = Vm::new(&config, Console::null()).unwrap();
        assert_eq!(vm.run().unwrap(), ExitReason::Reset);
        assert!(!socket.exists());
    };
    let named = std::env::var("VMM_TEST_LIVES").ok();
    let lives = named.map_or(LIVES, |number| number.parse().unwrap());
    (0..WARM_UP).for_each(|_| live());
    let before = Kept::now();
    (0..lives).for_each(|_| live());
    let after = Kept::now();
    println!("{lives} lives: {before:?} {after:?}");
    assert_eq!(
        after.descriptors, before.descriptors,
        "{before:?} {after:?}"
    );
    assert_eq!(after.threads, before.threads, "{before:?} {after:?}");
    // Stacks of threads are kept by some C libraries, and not one for each thread.
    assert!(
        after.mappings < before.mappings + 16,
        "{before:?} {after:?}"
    );
    assert!(after.memory < before.memory + SLACK, "{before:?} {after:?}");
}
