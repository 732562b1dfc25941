//! `ctl PATH fork`: a VM becomes two.

#![allow(clippy::unwrap_used)]
#![cfg(target_arch = "x86_64")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::thread;

use common::offspring::{
    Fork, ctl, kill_and_wait, len, parent_goes_on, pid_of, start, stop, wait_until,
};
use common::trial::{Spawned, Trial};
use common::{finish, option, vmm};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::Value;

/// Why no fork is made.
fn refused(trial: &Trial, more: &[&str]) -> String {
    let control = option("control", trial.path("refused"));
    let ended = trial.ctl(&[&["fork", &*control], more].concat());
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(!Path::new(&trial.path("refused")).exists(), "it stays");
    ended.stderr
}

#[test]
fn both_count_on_and_either_may_end_first() {
    let trial = Trial::new();
    let child = start(&trial, &["--vcpus=2"]);
    let said = trial.said(&["fork", &option("control", trial.path("said")), "--paused"]);
    assert!(said.starts_with("forked: process "), "{said}");
    let status = ctl(&trial.path("said"), &["status"]);
    assert!(status.starts_with("state     paused\n"), "{status}");
    ctl(&trial.path("said"), &["stop"]);
    let first = Fork::new(&trial, &trial.path("control"), "first", &[]);
    let second = Fork::new(&trial, &first.control, "second", &[]);
    for fork in [&first, &second] {
        fork.goes_on();
        assert!(ctl(&fork.control, &["status"]).starts_with("state     running\n"));
    }
    parent_goes_on(&trial);
    // The one in the middle goes.
    kill_process(first.pid(), Signal::KILL).unwrap();
    parent_goes_on(&trial);
    second.goes_on();
    drop(child);
    second.goes_on();
    let control = second.control.clone();
    drop(second);
    wait_until("its socket stays", || !Path::new(&control).exists());
}

#[test]
fn the_ends_of_forks_are_heard_and_nothing_is_left_of_them() {
    let trial = Trial::new();
    let child = start(&trial, &[]);
    let mut events = vmm(&["ctl", &trial.path("control"), "events", "--json"]);
    let mut events = Spawned::new(events.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(events.child_mut().stdout.take().unwrap()).lines();
    let mut next = |kind: &str| loop {
        let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if event["event"] == kind {
            return event;
        }
    };
    for (signal, status) in [(None, "exit status 0"), (Some(Signal::KILL), "signal 9")] {
        // Whoever listens may come a little later.
        let fork = Fork::new(&trial, &trial.path("control"), "fork", &[]);
        if let Some(signal) = signal {
            kill_process(fork.pid(), signal).unwrap();
            assert_eq!(next("fork-ended")["status"], status);
            fs::remove_file(&fork.control).unwrap();
        } else {
            ctl(&fork.control, &["stop"]);
            assert_eq!(next("fork-ended")["status"], status);
            assert!(!Path::new(&fork.control).exists());
        }
        assert!(!Path::new(&format!("/proc/{}", fork.pid)).exists());
    }
    stop(&trial, child);
    drop(events);
}

/// The descriptors of a process, as (kind, number).
fn descriptors(pid: u32) -> Vec<(String, i32)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let target = fs::read_link(entry.path()).ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((target.to_str()?.to_owned(), number))
        })
        .collect()
}

/// Whether two processes have the same open file there (kcmp(2)); none where the kernel does not tell.
fn is_same_file(one: (u32, i32), other: (u32, i32)) -> Option<bool> {
    const KCMP_FILE: libc::c_long = 0;
    // SAFETY: the call takes numbers.
    let order = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            libc::c_long::from(one.0),
            libc::c_long::from(other.0),
            KCMP_FILE,
            libc::c_long::from(one.1),
            libc::c_long::from(other.1),
        )
    };
    (order >= 0).then_some(order == 0)
}

#[test]
fn a_fork_has_nothing_of_its_parents() {
    // A sandbox hides what a ring does, and so a fork in one has none.
    for (sandbox, rings) in [("off", 4), ("auto", 0)] {
        has_nothing_of_its_parents(sandbox, rings);
    }
}

fn has_nothing_of_its_parents(sandbox: &str, rings: usize) {
    let trial = Trial::new();
    let (disk, shared) = (trial.path("disk"), trial.path("shared"));
    fs::write(&disk, [7; 8192]).unwrap();
    fs::write(&shared, [7; 8192]).unwrap();
    let devices = [
        format!("--blk={disk},engine=io_uring"),
        format!("--blk={shared},ro,engine=io_uring"),
        format!("--vsock=cid=3,path={}", trial.path("v")),
        "--balloon".to_owned(),
        "--console=null".to_owned(),
        "--vcpus=2".to_owned(),
        format!("--sandbox={sandbox}"),
    ];
    let child = start(&trial, &devices.each_ref().map(String::as_str));
    let own = [
        format!("--blk=id=blk0,copy={}", trial.path("copy")),
        "--blk=id=blk1,ro".to_owned(),
        format!("--vsock=path={}", trial.path("w")),
    ];
    let fork = Fork::new(
        &trial,
        &trial.path("control"),
        "fork",
        &own.each_ref().map(String::as_str),
    );
    let parent = child.child().id();
    let (ours, theirs) = (descriptors(parent), descriptors(fork.pid));
    let mut same = BTreeSet::new();
    for (kind, number) in theirs.iter().filter(|(_, number)| *number > 2) {
        for (_, other) in &ours {
            match is_same_file((fork.pid, *number), (parent, *other)) {
                Some(true) => drop(same.insert(kind.clone())),
                Some(false) => {}
                None => return eprintln!("SKIPPED: the kernel does not compare descriptors"),
            }
        }
    }
    // And the kernel's file, which has no name any more: a reset begins with it.
    let kernels = same.extract_if(.., |kind| kind.ends_with(" (deleted)"));
    assert_eq!(kernels.count(), 1, "{theirs:?}");
    let expected = BTreeSet::from(["/dev/kvm".to_owned(), shared.clone()]);
    assert_eq!(same, expected, "{theirs:?}");
    // Two of each vCPU, and of each ring as many as it has.
    let maps = fs::read_to_string(format!("/proc/{}/maps", fork.pid)).unwrap();
    assert_eq!(maps.matches("kvm-vcpu").count(), 4, "{maps}");
    assert_eq!(maps.matches("[io_uring]").count(), rings, "{maps}");
    fork.goes_on();
    drop(fork);
    stop(&trial, child);
}

#[test]
fn fifty_forks_of_one_vm() {
    let trial = Trial::new();
    let child = start(&trial, &[]);
    let mut forks = Vec::new();
    for number in 0..50 {
        let name = format!("fork{number}");
        forks.push(Fork::new(
            &trial,
            &trial.path("control"),
            &name,
            &["--paused"],
        ));
    }
    parent_goes_on(&trial);
    for fork in &forks {
        ctl(&fork.control, &["resume"]);
        fork.goes_on();
        ctl(&fork.control, &["pause"]);
    }
    let pids: BTreeSet<_> = forks.iter().map(|fork| fork.pid).collect();
    assert_eq!(pids.len(), 50);
    drop(forks);
    parent_goes_on(&trial);
    stop(&trial, child);
}

#[test]
fn what_cannot_be_forked_is_refused_and_goes_on() {
    for (arguments, said) in [
        (&["--memory-backing=shared"][..], "memory-backing=anonymous"),
        (&["--vsock=cid=3,path=VSOCK"], "vsock0 needs another socket"),
        (&["--blk=DISK"], "the disk blk0 may be written by its guest"),
    ] {
        let trial = Trial::new();
        fs::write(trial.path("disk"), [0; 4096]).unwrap();
        let arguments: Vec<_> = arguments
            .iter()
            .map(|argument| argument.replace("VSOCK", &trial.path("v")))
            .map(|argument| argument.replace("DISK", &trial.path("disk")))
            .collect();
        let child = start(
            &trial,
            &arguments.iter().map(String::as_str).collect::<Vec<_>>(),
        );
        let cause = refused(&trial, &[]);
        assert!(cause.contains(said), "{cause}");
        parent_goes_on(&trial);
        stop(&trial, child);
    }
}

#[test]
fn what_a_fork_is_given_is_checked_before_anything_is_done() {
    let trial = Trial::new();
    fs::write(trial.path("disk"), [0; 4096]).unwrap();
    let disk = format!("--blk={}", trial.path("disk"));
    let child = start(&trial, &[&disk]);
    let copy = format!("copy={}", trial.path("copy"));
    for (more, said) in [
        (
            vec![format!("--blk=id=x,{copy}")],
            "no device has the id \"x\"",
        ),
        (
            vec![
                format!("--blk=id=blk0,{copy}"),
                format!("--console=file={}", trial.path("c")),
            ],
            "it has no virtio console",
        ),
        (
            vec![
                format!("--blk=id=rng0,{copy}"),
                format!("--blk=id=blk0,path={}", trial.path("disk")),
            ],
            "rng0 is a device of the kind rng",
        ),
    ] {
        let cause = refused(&trial, &more.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(cause.contains(said), "{cause}");
        assert!(!Path::new(&trial.path("copy")).exists());
    }
    let written = refused(&trial, &["--blk=id=blk0,ro"]);
    assert!(
        written.contains("the disk blk0 may be written by its guest"),
        "{written}"
    );
    // What ctl itself finds.
    let usage = |more: &[&str]| {
        let ended = trial.ctl(&[&["fork"], more].concat());
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        ended.stderr
    };
    assert!(usage(&[]).contains("--control"));
    let control = option("control", trial.path("control"));
    assert!(usage(&[&control]).contains("another program listens there"));
    let new = option("control", trial.path("new"));
    for wrong in ["id=blk0,changed=ok", "id=,ro", "id=blk0,ro,path=x"] {
        let said = usage(&[&new, &format!("--blk={wrong}")]);
        assert!(said.contains("id=ID,copy=FILE or id=ID,ro"), "{said}");
    }
    for (wrong, said) in [
        ("id=net0,tap=t,queues=9", "it is 1 to 8"),
        ("id=net0,tap=t,queues=", "it is 1 to 8"),
        (
            "id=net0,fd=0,queues=2",
            "a descriptor is one pair of queues",
        ),
    ] {
        let usage = usage(&[&new, &format!("--net={wrong}")]);
        assert!(usage.contains(said), "{usage}");
    }
    // Whatever it is, nothing of the user's is written over: a disk, a log.
    let kept = format!("--serial=file={}", trial.path("disk"));
    assert!(usage(&[&new, &kept]).contains("cure: name another file"));
    assert_eq!(fs::read(trial.path("disk")).unwrap(), [0; 4096]);
    assert!(usage(&[&new, "--serial=stdio"]).contains("it is null or file=PATH"));
    let missing = format!("--blk=id=blk0,path={}", trial.path("missing"));
    assert!(usage(&[&new, &missing]).contains("No such file"));
    fs::write(trial.path("precious"), "precious").unwrap();
    let precious = format!("--blk=id=blk0,copy={}", trial.path("precious"));
    assert!(usage(&[&new, &precious]).contains("there is such a file already"));
    assert_eq!(fs::read(trial.path("precious")).unwrap(), b"precious");
    parent_goes_on(&trial);
    stop(&trial, child);
}

#[test]
fn a_fork_that_the_host_refuses_is_answered_and_its_parent_goes_on() {
    let trial = Trial::new();
    let child = start(&trial, &["--vcpus=2"]);
    let pid = child.child().id();
    // So many that a client with the descriptor of a socket has room, and one pipe.
    let open: BTreeSet<_> = descriptors(pid).iter().map(|(_, number)| *number).collect();
    let fourth = (0..)
        .filter(|number| !open.contains(number))
        .nth(3)
        .unwrap();
    let limit = |current: u64| {
        let limit = Rlimit {
            current: Some(current),
            maximum: getrlimit(Resource::Nofile).maximum,
        };
        prlimit(Some(pid_of(&child)), Resource::Nofile, limit).unwrap()
    };
    let before = limit(u64::try_from(fourth).unwrap() + 1);
    let cause = refused(&trial, &[]);
    assert!(cause.contains("Too many open files"), "{cause}");
    limit(before.current.unwrap_or(4096));
    parent_goes_on(&trial);
    let fork = Fork::new(&trial, &trial.path("control"), "fork", &[]);
    fork.goes_on();
    drop(fork);
    stop(&trial, child);
}

/// The process of the fork is killed while it waits for a disk that somebody else has.
#[test]
fn a_fork_that_is_killed_before_it_runs_is_answered() {
    let trial = Trial::new();
    let (disk, other) = (trial.path("disk"), trial.path("other"));
    fs::write(&disk, [0; 4096]).unwrap();
    fs::write(&other, [0; 4096]).unwrap();
    let child = start(&trial, &[&format!("--blk={disk}")]);
    let parent = pid_of(&child).as_raw_nonzero();
    let lock = fs::File::open(&other).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let children = format!("/proc/{parent}/task/{parent}/children");
    thread::scope(|scope| {
        let asked = scope.spawn(|| refused(&trial, &[&format!("--blk=id=blk0,path={other}")]));
        let mut killed = false;
        wait_until("there is no child", || {
            let pids = fs::read_to_string(&children).unwrap_or_default();
            for pid in pids.split_ascii_whitespace() {
                let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
                killed |= kill_process(pid, Signal::KILL).is_ok();
            }
            killed || asked.is_finished()
        });
        let cause = asked.join().unwrap();
        assert!(cause.contains("its process has ended before"), "{cause}");
        assert!(cause.contains("signal 9"), "{cause}");
    });
    parent_goes_on(&trial);
    stop(&trial, child);
}

/// Restored, it stands still; what is forked of it goes on. And what is forked is saved as any VM is.
#[test]
fn a_restored_vm_is_a_template() {
    let trial = Trial::new();
    let child = start(&trial, &[]);
    let saved = trial.path("saved");
    trial.said(&["pause"]);
    trial.said(&["snapshot", &saved]);
    stop(&trial, child);
    let control = option("control", trial.path("template"));
    let template = vmm(&["restore", &saved, "--paused", "--serial=null", &control]).spawn();
    let template = Spawned::new(template.unwrap());
    let control = trial.path("template");
    wait_until("it is not restored", || {
        finish(vmm(&["ctl", &control, "status"]).spawn().unwrap())
            .stdout
            .starts_with("state     paused\n")
    });
    let first = Fork::new(&trial, &control, "first", &[]);
    let second = Fork::new(&trial, &control, "second", &[]);
    for fork in [&first, &second] {
        fork.goes_on();
    }
    assert!(ctl(&control, &["status"]).starts_with("state     paused\n"));
    // All of them count on from the same number.
    let [one, other] = [&first, &second].map(|fork| fs::read(&fork.output).unwrap());
    assert_eq!(one[..100], other[..100]);
    let again = trial.path("again");
    // What changes it cannot ask for, in the sandbox that is the default.
    let diff = vmm(&["ctl", &first.control, "snapshot", &again, "--diff"]);
    let diff = finish({ diff }.spawn().unwrap());
    let cause = "a fork inside a sandbox cannot ask which of its pages were written";
    assert!(diff.stderr.contains(cause), "{diff:?}");
    ctl(&first.control, &["snapshot", &again]);
    drop((first, second));
    assert_eq!(kill_and_wait(template), None);
    let control = option("control", trial.path("restored"));
    let output = trial.path("restored output");
    let serial = format!("--serial=file={output}");
    let restored = vmm(&["restore", &again, &control, &serial]).spawn();
    let restored = Spawned::new(restored.unwrap());
    wait_until("it is not restored", || len(&output) > 100);
    ctl(&trial.path("restored"), &["stop"]);
    assert_eq!(restored.wait().code(), Some(0));
}

/// What is in a saved VM's memory at a place of its guest.
fn memory_at(folder: &str, range: &Value) -> Vec<u8> {
    let inspected = finish(vmm(&["inspect", folder, "--json"]).spawn().unwrap()).stdout;
    let about: Value = serde_json::from_str(&inspected).unwrap();
    let file = about["memory"][0]["file"].as_str().unwrap();
    let bytes = fs::read(Path::new(folder).join(file)).unwrap();
    let (base, len) = (
        range["base"].as_u64().unwrap(),
        range["len_bytes"].as_u64().unwrap(),
    );
    let base = usize::try_from(base).unwrap();
    bytes[base..base + usize::try_from(len).unwrap()].to_vec()
}

#[test]
fn every_fork_has_a_generation_id_of_its_own() {
    let trial = Trial::new();
    let child = start(&trial, &[]);
    let control = trial.path("control");
    let first = Fork::new(&trial, &control, "first", &[]);
    let second = Fork::new(&trial, &control, "second", &[]);
    let third = Fork::new(&trial, &second.control, "third", &[]);
    let mut ids = BTreeSet::new();
    for (number, control) in [&control, &first.control, &second.control, &third.control]
        .into_iter()
        .enumerate()
    {
        let folder = trial.path(&format!("saved{number}"));
        ctl(control, &["snapshot", &folder]);
        let inspected = finish(vmm(&["inspect", &folder, "--json"]).spawn().unwrap()).stdout;
        let about: Value = serde_json::from_str(&inspected).unwrap();
        let id = memory_at(&folder, &about["plan"]["vmgenid"]["range"]);
        assert_eq!(id.len(), 16);
        ids.insert(id);
    }
    assert_eq!(ids.len(), 4, "{ids:?}");
    drop((first, second, third));
    stop(&trial, child);
}

/// It is a VM: signals end it, and its status says how.
#[test]
fn a_fork_ends_as_a_vm_does() {
    let trial = Trial::new();
    let child = start(&trial, &["--lean=on"]);
    let control = trial.path("control");
    for signal in [Signal::INT, Signal::HUP] {
        let fork = Fork::new(&trial, &control, "fork", &[]);
        kill_process(fork.pid(), signal).unwrap();
        wait_until("it does not end", || !Path::new(&fork.control).exists());
    }
    // Its guest takes no notice of its power button.
    let fork = Fork::new(&trial, &control, "fork", &[]);
    kill_process(fork.pid(), Signal::TERM).unwrap();
    wait_until("it does not end", || !Path::new(&fork.control).exists());
    let reset = finish(vmm(&["ctl", &control, "fork"]).spawn().unwrap());
    assert_eq!(reset.status.code(), Some(2));
    parent_goes_on(&trial);
    stop(&trial, child);
}
