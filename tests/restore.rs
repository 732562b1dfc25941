//! `ctl PATH snapshot` and `restore`, as processes.

#![allow(clippy::unwrap_used)]
#![cfg(target_arch = "x86_64")]

mod common;
mod restore_layers;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Instant;

use common::trial::{COUNT, Trial};
use common::{finish, option, vmm};

#[test]
fn a_vm_goes_on_in_another_process() {
    let trial = Trial::new();
    let kernel = common::kernel(COUNT);
    let kernel = option("kernel", kernel.path());
    let saved = trial.path("saved");
    let plain = ["--rng=off", "--transport=mmio", "--guest-memory=32"];
    let mut child = trial.spawn(0, &[&[kernel.as_str()], &plain[..]].concat());
    let mut all = Vec::new();
    for generation in 0..3 {
        trial.wait(generation);
        trial.said(&["pause"]);
        let said = trial.said(&["snapshot", &saved]);
        assert!(said.starts_with(&format!("saved to {saved}: ")), "{said}");
        let inspected = finish(vmm(&["inspect", &saved]).spawn().unwrap()).stdout;
        for text in [
            "saved VM  of vmm-reference ",
            "vCPUs     1\n",
            "memory    32 MiB\n",
            " KiB in memory-",
        ] {
            assert!(inspected.contains(text), "{inspected}");
        }
        // A second one takes the first one's place.
        trial.said(&["snapshot", &saved, "--json"]);
        let files = trial.files();
        assert!(
            matches!(&files[..], [memory, state] if memory.starts_with("memory-") && state == "state"),
            "{files:?}"
        );
        trial.said(&["stop"]);
        // It has let go of its socket, which the next one gets.
        let next = trial.spawn(generation + 1, &["restore", &saved]);
        assert_eq!(child.finish().status.code(), Some(0));
        all.extend(fs::read(trial.output(generation)).unwrap());
        child = next;
    }
    trial.wait(3);
    trial.said(&["stop"]);
    child.finish();
    all.extend(fs::read(trial.output(3)).unwrap());
    for pair in all.windows(2) {
        assert_eq!(pair[1], pair[0].wrapping_add(1));
    }

    let child = trial.spawn(4, &["restore", &saved, "--paused"]);
    // It may not be there yet.
    let mut status = trial.said(&["status"]);
    while status.starts_with("state     created\n") {
        status = trial.said(&["status"]);
    }
    assert!(status.starts_with("state     paused\n"), "{status}");
    assert!(fs::read(trial.output(4)).unwrap().is_empty());
    trial.said(&["stop"]);
    child.finish();
}

#[test]
fn r46_a_snapshot_that_fails_leaves_the_one_before_and_nothing_else() {
    let trial = Trial::new();
    let kernel = common::kernel(COUNT);
    let kernel = option("kernel", kernel.path());
    let saved = trial.path("saved");
    let child = trial.spawn(0, &[&kernel]);
    fs::create_dir(&saved).unwrap();
    fs::write(trial.path("saved/state"), "precious").unwrap();
    let ended = trial.ctl(&["snapshot", &saved]);
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    let said = format!("error: {saved}/state: it is in the way: ");
    assert!(ended.stderr.starts_with(&said), "{ended:?}");
    assert_eq!(trial.files(), ["state"]);
    assert_eq!(fs::read(trial.path("saved/state")).unwrap(), b"precious");
    fs::rename(trial.path("saved/state"), trial.path("mine")).unwrap();
    std::os::unix::fs::symlink(trial.path("mine"), trial.path("saved/state")).unwrap();
    let ended = trial.ctl(&["snapshot", &saved]);
    assert!(
        ended
            .stderr
            .starts_with(&format!("{said}it is a symbolic link")),
        "{ended:?}"
    );
    assert_eq!(fs::read(trial.path("mine")).unwrap(), b"precious");
    let ended = trial.ctl(&["snapshot", &trial.path("nowhere/saved")]);
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.contains("cure: name a folder"), "{ended:?}");
    assert!(trial.said(&["status"]).starts_with("state     running\n"));
    trial.said(&["stop"]);
    child.finish();
}

/// Says nothing where nobody may mount a file system.
#[test]
fn r46_a_full_file_system_has_the_saved_vm_of_before() {
    let trial = Trial::new();
    let kernel = common::kernel(COUNT);
    let kernel = option("kernel", kernel.path());
    let child = trial.spawn(0, &[&kernel, "--rng=off"]);
    fs::create_dir(trial.path("saved")).unwrap();
    let script = "mount -t tmpfs -o size=\"$1\" none \"$2\" || exit 77; shift; \
        \"$3\" ctl \"$2\" snapshot \"$1\" $5 || exit 2; cp -r \"$1\" \"$4\"; \
        head -c 1G /dev/zero > \"$1\"/fill 2> /dev/null; \
        \"$3\" ctl \"$2\" snapshot \"$1\" $5; status=$?; rm \"$1\"/fill; diff -r \"$1\" \"$4\" || exit 3; exit $status";
    for what in ["", "--diff"] {
        if !what.is_empty() && !restore_layers::is_told(&trial) {
            break;
        }
        let arguments = [
            "-c".to_owned(),
            script.to_owned(),
            "sh".to_owned(),
            "4M".to_owned(),
            trial.path("saved"),
            trial.path("control"),
            env!("CARGO_BIN_EXE_vmm-reference").to_owned(),
            trial.path(&format!("copy{what}")),
            what.to_owned(),
        ];
        let mut unshare = std::process::Command::new("unshare");
        let ended = unshare
            .args(["--map-root-user", "--mount", "sh"])
            .args(arguments)
            .output();
        let ended = ended.unwrap();
        if ended.status.code() == Some(77) {
            let allowed = std::env::var_os("CI").is_none();
            assert!(allowed, "no file system: {ended:?}");
        } else {
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(1), "{ended:?}");
            assert!(said.contains("No space left on device"), "{said}");
        }
    }
    assert!(trial.said(&["status"]).starts_with("state     running\n"));
    trial.said(&["stop"]);
    child.finish();
}

/// Whenever `ctl` is killed, the folder has the saved VM of before or the next one.
#[test]
fn r46_a_killed_ctl_leaves_a_whole_saved_vm_and_nothing_that_is_in_the_way() {
    let trial = Trial::new();
    let kernel = common::kernel(COUNT);
    let kernel = option("kernel", kernel.path());
    let (saved, control) = (trial.path("saved"), trial.path("control"));
    let child = trial.spawn(0, &[&kernel, "--guest-memory=32"]);
    trial.said(&["snapshot", &saved]);
    let begin = Instant::now();
    trial.said(&["snapshot", &saved]);
    let whole = begin.elapsed();
    const STEPS: u32 = 30;
    for step in 0..STEPS {
        let ctl = vmm(&["ctl", &control, "snapshot", &saved]).spawn();
        let mut ctl = ctl.unwrap();
        thread::sleep(whole * step / STEPS);
        ctl.kill().unwrap();
        ctl.wait().unwrap();
        // It is one that can be read, with its memory.
        let inspected = finish(vmm(&["inspect", &saved]).spawn().unwrap());
        assert_eq!(inspected.status.code(), Some(0), "{step}: {inspected:?}");
    }
    assert!(trial.said(&["status"]).starts_with("state     running\n"));
    trial.is_written();
    trial.said(&["snapshot", &saved]);
    // What those that were killed have left is gone.
    let files = trial.files();
    assert!(
        matches!(&files[..], [memory, state] if memory.starts_with("memory-") && state == "state"),
        "{files:?}"
    );
    trial.said(&["stop"]);
    child.finish();
    trial.goes_on();
}

/// Memory is the file, and whoever cuts it takes the memory away.
#[test]
fn r32_a_vm_whose_memory_is_cut_says_so_and_ends() {
    let trial = Trial::new();
    let kernel = common::kernel(COUNT);
    let kernel = option("kernel", kernel.path());
    let saved = trial.path("saved");
    let child = trial.spawn(0, &[&kernel, "--guest-memory=32"]);
    trial.said(&["snapshot", &saved]);
    trial.said(&["stop"]);
    child.finish();
    let memory = trial.files().remove(0);
    let child = trial.spawn(1, &["restore", &saved, "--paused"]);
    trial.said(&["status"]);
    let memory = trial.path(&format!("saved/{memory}"));
    let file = fs::OpenOptions::new().write(true).open(memory).unwrap();
    file.set_len(0).unwrap();
    let resumed = trial.ctl(&["resume"]);
    let ended = child.finish();
    assert_eq!(ended.status.code(), Some(1), "{ended:?} {resumed:?}");
    assert!(
        ended.stderr.starts_with("error: guest memory is lost"),
        "{ended:?}"
    );
    assert!(
        ended.stderr.contains("cure: restore the VM again"),
        "{ended:?}"
    );
}

/// A disk belongs to the memory that knows it.
#[test]
fn a_disk_that_went_on_is_refused_unless_it_is_said_to_be_fine() {
    let trial = Trial::new();
    let kernel = common::kernel(COUNT);
    let kernel = option("kernel", kernel.path());
    let saved = trial.path("saved");
    let (disk, copy) = (trial.path("disk"), trial.path("copy"));
    fs::write(&disk, [0; 4096]).unwrap();
    let blk = format!("--blk={disk},id=root");
    let child = trial.spawn(0, &[&kernel, &blk, "--guest-memory=32"]);
    trial.said(&["snapshot", &saved]);
    trial.said(&["stop"]);
    child.finish();
    let inspected = finish(vmm(&["inspect", &saved]).spawn().unwrap()).stdout;
    assert!(
        inspected.contains(&format!("opens     root: {disk}\n")),
        "{inspected}"
    );

    let refused = |arguments: &[&str]| {
        let all = [&["restore", &saved, "--serial=null"], arguments].concat();
        let ended = finish(vmm(&all).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        ended.stderr
    };
    let said = refused(&["--blk=id=blk0,changed=ok"]);
    assert!(
        said.contains("it has root") && said.contains("--blk=blk0"),
        "{said}"
    );
    let said = refused(&["--blk=id=root"]);
    assert!(said.contains("id=ID,path=FILE"), "{said}");
    let said = refused(&["--net=id=net0,tap=t"]);
    assert!(said.contains("no device of this kind"), "{said}");
    let said = refused(&["--vsock=path=/v"]);
    assert!(said.contains("has no vsock device"), "{said}");
    let said = refused(&["--console=stdio"]);
    assert!(said.contains("has no virtio console"), "{said}");
    // Another size is never fine.
    fs::write(&copy, [0; 512]).unwrap();
    let other = format!("--blk=id=root,path={copy},changed=ok");
    assert!(refused(&[&other]).contains("its guest knows 8 in blocks of 512"));
    // A copy of the disk, made later.
    fs::copy(&disk, &copy).unwrap();
    let said = refused(&[&format!("--blk=id=root,path={copy}")]);
    assert!(said.contains("has changed since"), "{said}");
    assert!(said.contains("changed=ok"), "{said}");
    let child = trial.spawn(1, &["restore", &saved, &other]);
    trial.wait(1);
    trial.said(&["stop"]);
    child.finish();
    // The one that it had, as it was, and as it is by then.
    let child = trial.spawn(2, &["restore", &saved]);
    trial.wait(2);
    trial.said(&["stop"]);
    child.finish();
    fs::write(&disk, [1; 4096]).unwrap();
    assert!(refused(&[]).contains("has changed since"));
    let child = trial.spawn(3, &["restore", &saved, "--blk=id=root,changed=ok"]);
    trial.wait(3);
    trial.said(&["stop"]);
    child.finish();
    fs::remove_file(&disk).unwrap();
    let said = refused(&[]);
    assert!(
        said.contains(&disk) && said.contains("no such file"),
        "{said}"
    );
}

#[test]
fn a_folder_without_a_saved_vm_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let restore = |path: &Path| {
        let arguments = ["restore", path.to_str().unwrap(), "--serial=null"];
        let ended = finish(vmm(&arguments).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        ended.stderr
    };
    let said = restore(&folder.path().join("nowhere"));
    assert!(
        said.starts_with("error: /") && said.contains("nowhere/state: No such file"),
        "{said}"
    );
    assert!(said.contains("cure: name the folder that"), "{said}");
    fs::create_dir(folder.path().join("state")).unwrap();
    assert!(restore(folder.path()).contains("it is no regular file"));
    fs::remove_dir(folder.path().join("state")).unwrap();
    fs::write(folder.path().join("state"), "x").unwrap();
    let said = restore(folder.path());
    assert!(said.contains("it is no saved machine"), "{said}");
}
