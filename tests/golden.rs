//! Golden snapshots: a saved VM of each architecture, which every host reads and judges. Whoever changes what is saved adds
//! what reads the old form, and they stay as they are; `cargo xtask golden` makes new ones. `tests/micro_snapshots` goes on
//! with the host's own.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

use arch_host::{Aarch64, Riscv64, X86_64};
use flate2::read::GzDecoder;
use vmm_reference::arch::Platform;
use vmm_reference::{ARCHITECTURES, Snapshot};

/// All golden files together, in bytes: they are part of the repository.
const MOST: u64 = 300 << 10;

fn path(arch: &str, name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/golden", arch, name]
        .iter()
        .collect()
}

fn unpacked(arch: &str, name: &str) -> File {
    let packed = File::open(path(arch, name)).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::copy(&mut GzDecoder::new(packed), file.as_file_mut()).unwrap();
    file.reopen().unwrap()
}

fn golden(arch: &str) -> Snapshot {
    Snapshot::read(format!("golden {arch}"), unpacked(arch, "state.gz")).unwrap()
}

#[test]
fn golden_snapshots_are_read_on_every_host() {
    for arch in ARCHITECTURES {
        let snapshot = golden(arch);
        assert_eq!(snapshot.plan().arch, *arch);
        assert_eq!(snapshot.memory_files().len(), 1);
        let kinds = snapshot.plan().devices.iter();
        let virtio = kinds.filter(|device| device.kind.virtio().is_some());
        assert_eq!(virtio.count(), 5, "{arch}");
        // A disk of the one who made it, say.
        let paths: Vec<_> = snapshot
            .config()
            .blk
            .iter()
            .map(|disk| &disk.path)
            .collect();
        assert_eq!(paths, ["/run/golden/golden.disk"], "{arch}");
        let mut memory = Vec::new();
        let mut file = unpacked(arch, "memory.gz");
        file.read_to_end(&mut memory).unwrap();
        assert_eq!(memory.len() as u64, snapshot.plan().ram_size(), "{arch}");
        assert!(memory.windows(5).any(|text| text == b"ticks"), "{arch}");
    }
}

/// What is only the platform's to read, and what a host lacks that is not there.
fn judged<P: Platform>(arch: &str, mut typical: P) {
    for other in ARCHITECTURES {
        let differences = golden(other).differences(&mut typical);
        if *other == arch {
            for difference in differences.unwrap() {
                println!("golden {arch}, on a typical host: {difference}");
            }
        } else {
            let refused = differences.unwrap_err().to_string();
            assert!(refused.contains("the section "), "{other}: {refused}");
        }
    }
}

#[test]
fn golden_snapshots_are_judged_on_every_host() {
    judged("aarch64", Aarch64::typical());
    judged("riscv64", Riscv64::typical());
    judged("x86_64", X86_64::typical());
}

#[test]
fn golden_snapshots_are_small() {
    let mut total = 0;
    for arch in ARCHITECTURES {
        for entry in fs::read_dir(path(arch, "")).unwrap() {
            total += entry.unwrap().metadata().unwrap().len();
        }
    }
    assert!(total <= MOST, "{total} bytes");
}
