//! `ctl PATH snapshot FOLDER --blk id=ID,copy=FILE`: saved VMs that have disks of their own.

#![allow(clippy::unwrap_used)]
#![cfg(target_arch = "x86_64")]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use common::trial::{COUNT, Spawned, Trial};
use common::{finish, option, vmm};

/// Of a disk: bytes, and where it has data.
const LEN: u64 = 16 << 20;
const DATA: [u64; 3] = [0, 5 << 20, LEN - 4096];

/// A sparse disk.
fn disk(path: &str) -> Vec<u8> {
    let file = File::create(path).unwrap();
    file.set_len(LEN).unwrap();
    for (place, byte) in DATA.into_iter().zip(1..) {
        file.write_all_at(&[byte; 4096], place).unwrap();
    }
    fs::read(path).unwrap()
}

/// A VM with disks.
fn start(trial: &Trial, disks: &[&str]) -> Spawned {
    let kernel = common::kernel(COUNT);
    let kernel = option("kernel", kernel.path());
    let child = trial.spawn(0, &[&[&*kernel, "--guest-memory=32"], disks].concat());
    trial.wait(0);
    child
}

#[test]
fn a_saved_vm_has_copies_of_its_disks_and_the_one_that_it_was_goes_on() {
    let trial = Trial::new();
    let (first, second) = (trial.path("first"), trial.path("second"));
    let content = disk(&first);
    fs::write(&second, [7; 8192]).unwrap();
    let disks = [
        format!("--blk={first},id=root"),
        format!("--blk={second},id=data,ro"),
    ];
    let child = start(&trial, &disks.each_ref().map(String::as_str));
    let saved = trial.path("saved");
    // One of them lies in a folder that is made for it.
    let copies = [trial.path("saved/root copy"), trial.path("data, copied")];
    let [root, data] = &copies;
    let blk = [
        format!("--blk=id=root,copy={root}"),
        format!("--blk=id=data,copy=\"{data}\""),
    ];
    let said = trial.said(&["snapshot", &saved, &blk[0], &blk[1]]);
    let lines: Vec<_> = said.lines().collect();
    assert!(
        lines[0].starts_with(&format!("root copied to {root}: ")),
        "{said}"
    );
    assert!(
        lines[1].starts_with(&format!("data copied to {data}: ")),
        "{said}"
    );
    assert!(lines[2].starts_with("saved to "), "{said}");
    // What the VM does from here on is its own.
    let written = File::options().write(true).open(&first).unwrap();
    written.write_all_at(&[9; 8192], 4096).unwrap();
    assert!(fs::read(root).unwrap() == content);
    assert_eq!(fs::read(data).unwrap(), [7; 8192]);
    for path in &copies {
        let found = fs::metadata(path).unwrap();
        assert_eq!(found.mode() & 0o777, 0o600);
        assert!(found.blocks() * 512 <= 128 << 10, "{found:?}");
    }
    let inspected = finish(vmm(&["inspect", &saved]).spawn().unwrap()).stdout;
    for opens in [
        format!("opens     root: {root}\n"),
        format!("opens     data: {data}\n"),
    ] {
        assert!(inspected.contains(&opens), "{inspected}");
    }
    // Beside the one that it was, which has its disks locked.
    let control = format!("--control={}", trial.path("control2"));
    let both = vmm(&["restore", &saved, "--serial=null", "--paused", &control]).spawn();
    let restored = Spawned::new(both.unwrap());
    let control = trial.path("control2");
    while !finish(vmm(&["ctl", &control, "status"]).spawn().unwrap())
        .stdout
        .starts_with("state     paused\n")
    {
        assert!(is_alive(restored.child()));
    }
    let stopped = finish(vmm(&["ctl", &control, "stop"]).spawn().unwrap());
    assert_eq!(stopped.status.code(), Some(0), "{stopped:?}");
    assert_eq!(restored.finish().status.code(), Some(0));
    trial.said(&["stop"]);
    child.finish();
    // A copy that was written to is one that its guest does not know.
    File::options()
        .write(true)
        .open(root)
        .unwrap()
        .write_all_at(&[1], 0)
        .unwrap();
    let ended = finish(vmm(&["restore", &saved, "--serial=null"]).spawn().unwrap());
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.contains("has changed since"), "{ended:?}");
}

fn is_alive(child: &Child) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    !stat.contains(") Z ")
}

#[test]
fn what_cannot_be_copied_is_refused_and_nothing_is_left() {
    let trial = Trial::new();
    let first = trial.path("first");
    disk(&first);
    let child = start(&trial, &[&format!("--blk={first},id=root"), "--rng=on"]);
    let saved = trial.path("saved");
    let copy = trial.path("copy");
    let refused = |status: i32, options: &[&str], said: &[&str]| {
        let ended = trial.ctl(&[&["snapshot", &saved], options].concat());
        assert_eq!(ended.status.code(), Some(status), "{options:?}: {ended:?}");
        for text in said {
            assert!(ended.stderr.contains(text), "{options:?}: {ended:?}");
        }
        assert!(!Path::new(&copy).exists());
        assert!(!Path::new(&saved).exists(), "{options:?}");
    };
    let blk = |id: &str, path: &str| format!("--blk=id={id},copy={path}");
    let root = blk("root", &copy);
    let said = ["no device has the id \"blk0\"; there are root, rng0"];
    refused(1, &[&blk("blk0", &copy)], &said);
    refused(1, &[&blk("rng0", &copy)], &["rng0 has no file"]);
    let twice = [&*root, &blk("root", &trial.path("other"))];
    refused(2, &twice, &["the disk root is copied once only"]);
    let exists = [
        &*format!("--blk=id=root,copy={first}"),
        "there is such a file already",
    ];
    refused(2, &[&blk("root", &first)], &exists);
    let nowhere = trial.path("nowhere/copy");
    refused(
        2,
        &[&blk("root", &nowhere)],
        &["No such file", "cure: name a new file"],
    );
    for name in ["state", "memory-1-2", "state-1a-b"] {
        let path = trial.path(&format!("saved/{name}"));
        let cause = "the files of the saved VM itself have such names";
        refused(2, &[&blk("root", &path)], &[cause]);
    }
    refused(2, &["--blk=id=root"], &["id=ID,copy=FILE"]);
    refused(2, &[&blk("root", "/")], &["it names no file"]);
    // It goes on, and other files may have such names.
    let path = trial.path("state-1a-b");
    trial.said(&["snapshot", &saved, &blk("root", &path)]);
    assert_eq!(trial.files().len(), 2);
    trial.said(&["stop"]);
    child.finish();
}

/// Whenever it is killed, a saved VM is there with its disk, and a copy that has its name is whole.
#[test]
fn r46_a_killed_ctl_leaves_no_half_copy() {
    const STEPS: u32 = 16;
    const BYTES: usize = 8 << 20;
    let trial = Trial::new();
    let first = trial.path("first");
    fs::write(&first, vec![5; BYTES]).unwrap();
    let child = start(&trial, &[&format!("--blk={first},id=root")]);
    let (saved, control) = (trial.path("saved"), trial.path("control"));
    let copy = |step: u32| trial.path(&format!("copy{step}"));
    let blk = |step: u32| format!("--blk=id=root,copy={}", copy(step));
    let begin = Instant::now();
    trial.said(&["snapshot", &saved, &blk(STEPS)]);
    let whole = begin.elapsed();
    let mut copies = 1;
    for step in 0..STEPS {
        let blk = blk(step);
        let ctl = vmm(&["ctl", &control, "snapshot", &saved, &blk]).spawn();
        let mut ctl = ctl.unwrap();
        thread::sleep(whole * step / STEPS);
        ctl.kill().unwrap();
        ctl.wait().unwrap();
        if let Ok(bytes) = fs::read(copy(step)) {
            assert!(bytes == vec![5; BYTES], "{step}");
            copies += 1;
        }
        let inspected = finish(vmm(&["inspect", &saved]).spawn().unwrap());
        assert_eq!(inspected.status.code(), Some(0), "{step}: {inspected:?}");
        let opens = inspected
            .stdout
            .lines()
            .find_map(|line| line.split_once("root: "));
        assert!(
            Path::new(opens.unwrap().1).exists(),
            "{step}: {inspected:?}"
        );
    }
    trial.is_written();
    trial.said(&["snapshot", &saved, &blk(STEPS + 1)]);
    // What those that were killed have left is gone, but for copies.
    let files = trial.files();
    assert!(
        matches!(&files[..], [memory, state] if memory.starts_with("memory-") && state == "state"),
        "{files:?}"
    );
    let left = fs::read_dir(trial.path(".")).unwrap();
    let left = left.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_str().unwrap().contains("copy")
    });
    assert_eq!(left.count(), copies + 1);
    trial.said(&["stop"]);
    child.finish();
    trial.goes_on();
}

/// A mount namespace with a file system in it, as long as this lives.
struct Mounted(Child);

impl Mounted {
    /// `None`, loudly, where that cannot be.
    fn new(how: &str, folder: &str) -> Option<Self> {
        fs::create_dir(folder).unwrap();
        let script = format!("mount {how} \"$0\" && echo mounted && read end");
        let mut unshare = Command::new("unshare");
        // Root needs no user namespace, where nobody may mount what is on a disk.
        let is_root = rustix::process::geteuid().is_root();
        let user: &[_] = if is_root { &[] } else { &["--map-root-user"] };
        let unshare = unshare
            .args(user)
            .args(["--mount", "sh", "-c", &script, folder])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut mounted = Self(unshare.spawn().unwrap());
        let mut line = String::new();
        let mut said = BufReader::new(mounted.0.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        if line == "mounted\n" {
            return Some(mounted);
        }
        eprintln!("SKIPPED: no file system can be mounted");
        None
    }

    /// A path in it, for those outside.
    fn path(&self, path: &str) -> String {
        format!("/proc/{}/root{path}", self.0.id())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn r46_a_full_file_system_has_no_half_copy() {
    let trial = Trial::new();
    let first = trial.path("first");
    fs::write(&first, vec![5; 8 << 20]).unwrap();
    let folder = trial.path("small");
    let Some(mounted) = Mounted::new("-t tmpfs -o size=4M none", &folder) else {
        assert!(std::env::var_os("CI").is_none());
        return;
    };
    let child = start(&trial, &[&format!("--blk={first},id=root")]);
    let small = mounted.path(&folder);
    let saved = format!("{small}/saved");
    trial.said(&["snapshot", &saved]);
    let names = || {
        let mut names: Vec<_> = [&small, &saved]
            .into_iter()
            .flat_map(|folder| fs::read_dir(folder).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        names
    };
    let before = (names(), fs::read(format!("{saved}/state")).unwrap());
    for copy in [format!("{small}/copy"), format!("{saved}/copy")] {
        let blk = format!("--blk=id=root,copy={copy}");
        let ended = trial.ctl(&["snapshot", &saved, &blk]);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let said = "the disk root cannot be copied: No space left on device";
        assert!(ended.stderr.contains(said), "{ended:?}");
        let after = (names(), fs::read(format!("{saved}/state")).unwrap());
        assert!(before == after, "{:?}", after.0);
    }
    assert!(trial.said(&["status"]).starts_with("state     running\n"));
    trial.said(&["stop"]);
    child.finish();
}

/// On a file system where files can have the same blocks.
#[test]
fn a_disk_is_copied_by_a_reflink_where_the_file_system_can() {
    let trial = Trial::new();
    let (image, folder) = (trial.path("image"), trial.path("xfs"));
    File::create(&image).unwrap().set_len(512 << 20).unwrap();
    let made = Command::new("mkfs.xfs").args(["-q", &image]).status();
    if !made.is_ok_and(|made| made.success()) {
        eprintln!("SKIPPED: no mkfs.xfs (xfsprogs)");
        return;
    }
    let Some(mounted) = Mounted::new(&format!("-o loop {image}"), &folder) else {
        return;
    };
    let inside = mounted.path(&folder);
    let first = format!("{inside}/first");
    let content = disk(&first);
    let child = start(&trial, &[&format!("--blk={first},id=root")]);
    let saved = trial.path("saved");
    let copy = format!("{inside}/copy");
    let said = trial.said(&["snapshot", &saved, &format!("--blk=id=root,copy={copy}")]);
    let expected = format!("root copied to {copy}: by a reflink, in ");
    assert!(said.starts_with(&expected), "{said}");
    // To another file system it is read and written.
    let other = trial.path("other");
    let blk = format!("--blk=id=root,copy={other}");
    let said = trial.said(&["snapshot", &trial.path("again"), &blk, "--json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let copied = &said["copies"][0];
    assert_eq!(copied["method"], "sparse", "{said}");
    assert_eq!(copied["device"], "root");
    assert_eq!(copied["name"], *other);
    assert_eq!(copied["written_bytes"], 3 * 4096);
    let written = File::options().write(true).open(&first).unwrap();
    written.write_all_at(&[9; 4096], 0).unwrap();
    trial.said(&["stop"]);
    child.finish();
    for path in [&copy, &other] {
        assert!(fs::read(path).unwrap() == content, "{path}");
        assert!(fs::metadata(path).unwrap().blocks() * 512 <= 256 << 10);
    }
    trial.goes_on();
}
