//! The golden snapshot of this architecture goes on: a guest that was saved by an earlier version.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use flate2::read::GzDecoder;
use vmm_reference::Snapshot;

use super::Wanderer;
use crate::common::vmm;
use crate::passed;

/// Where the tests run, there may be no repository.
macro_rules! golden {
    ($arch:literal) => {
        [
            include_bytes!(concat!("../golden/", $arch, "/state.gz")),
            include_bytes!(concat!("../golden/", $arch, "/memory.gz")),
            include_bytes!(concat!("../golden/", $arch, "/printed")),
        ]
    };
}

#[cfg(target_arch = "aarch64")]
const GOLDEN: [&[u8]; 3] = golden!("aarch64");
#[cfg(target_arch = "riscv64")]
const GOLDEN: [&[u8]; 3] = golden!("riscv64");
#[cfg(target_arch = "x86_64")]
const GOLDEN: [&[u8]; 3] = golden!("x86_64");

/// Lines that it prints when it goes on.
const LINES: u32 = 5;
/// What may be in the way: another processor than that of the machine where it was saved.
const PROCESSOR: [&str; 2] = ["the saved machine has ", "time stamp counter"];

/// A KVM that takes a time stamp counter and does not load it: the guest has the host's, which is less where that has not
/// been up for as long as the other one had.
const IGNORES_COUNTER: &str = "/sys/module/kvm_pvm";

fn unpack(packed: &[u8], path: &Path) {
    let mut file = File::create(path).unwrap();
    std::io::copy(&mut GzDecoder::new(packed), &mut file).unwrap();
}

#[test]
fn a_guest_that_an_earlier_version_saved_goes_on() {
    let [state, memory, printed] = GOLDEN;
    let mut wanderer = Wanderer::new(|control| {
        let folder = Path::new(control.split_once('=').unwrap().1)
            .parent()
            .unwrap();
        unpack(state, &folder.join("state"));
        let name = folder.join("state");
        let snapshot = Snapshot::read("golden", File::open(name).unwrap()).unwrap();
        unpack(memory, &folder.join(snapshot.memory_files()[0]));
        let disk = folder.join("disk");
        fs::write(&disk, [0; 64 << 10]).unwrap();
        let paths = [
            format!("--blk=id=blk0,changed=ok,path={}", disk.display()),
            format!("--vsock=path={}", folder.join("sockets").display()),
        ];
        let folder = folder.to_str().unwrap();
        let console = ["--serial=stdio", "--console=null"];
        let arguments = ["restore", folder, control, &paths[0], &paths[1]];
        vmm(&[&arguments[..], &console].concat())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap()
    });
    wanderer.stdout = String::from_utf8(printed.to_vec()).unwrap();
    let mut first = [0];
    let stdout = wanderer.child.child().stdout.as_mut().unwrap();
    if stdout.read(&mut first).unwrap() == 0 {
        let ended = wanderer.child.finish();
        assert!(!ended.status.success(), "{ended:?}");
        let mut said = ended.stderr.split("; ");
        let is_processor = |cause: &str| PROCESSOR.iter().any(|text| cause.contains(text));
        assert!(said.all(is_processor), "{ended:?}");
        eprintln!(
            "SKIPPED: the golden snapshot is of another processor: {}",
            ended.stderr
        );
        return;
    }
    wanderer.stdout.push(first[0].into());
    for _ in 0..LINES {
        let went_back = wanderer.line().starts_with("the counter went from ");
        if went_back && Path::new(IGNORES_COUNTER).exists() {
            eprintln!(
                "SKIPPED: KVM has not loaded the counter: {}",
                wanderer.stdout
            );
            return;
        }
    }
    wanderer.types(b"u");
    while wanderer.line() != "user mode\n" {}
    wanderer.types(b"q");
    let mut ended = wanderer.child.finish();
    ended.stdout.insert_str(0, &wanderer.stdout);
    let mut lines = passed(ended);
    lines.retain(|line| line != "user mode");
    let numbers: Vec<u64> = lines.iter().map(|line| line.parse().unwrap()).collect();
    assert!(
        numbers[0] > 1 && numbers.is_sorted_by(|one, next| one + 1 == *next),
        "{numbers:?}"
    );
}
