//! Births and deaths of forks: whose VM ends meanwhile, and that start again.

#![allow(clippy::unwrap_used)]
#![cfg(target_arch = "x86_64")]

mod common;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use common::offspring::{
    Fork, ctl, kill_and_wait, len, parent_goes_on, pid_of, start, stop, wait_until,
};
use common::trial::{COUNT, Spawned, Trial};
use common::{Ended, finish, kernel, option, vmm};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The process of a fork that stands still before it is ready: it waits for a disk that this test has locked.
struct Unready {
    pid: Pid,
    /// Held by this test until the disk may be had.
    lock: fs::File,
    /// `ctl PATH fork`.
    asked: Option<thread::JoinHandle<Ended>>,
    /// The fork's socket, output, and copy of its other disk.
    control: String,
    output: String,
    copy: String,
}

impl Unready {
    /// Of a VM with two disks.
    fn new() -> (Trial, Spawned, Self) {
        let trial = Trial::new();
        for name in ["disk", "other", "second"] {
            fs::write(trial.path(name), [0; 4096]).unwrap();
        }
        let disks = ["disk", "second"].map(|name| option("blk", trial.path(name)));
        let child = start(&trial, &disks.each_ref().map(String::as_str));
        let parent = pid_of(&child).as_raw_nonzero();
        let children = format!("/proc/{parent}/task/{parent}/children");
        // The fork waits for half a second, in which it has to be found.
        for _ in 0..50 {
            let lock = fs::File::open(trial.path("other")).unwrap();
            flock(&lock, FlockOperation::LockExclusive).unwrap();
            let [control, output, copy] =
                ["new", "new output", "copy"].map(|name| trial.path(name));
            let arguments = [
                "ctl".to_owned(),
                trial.path("control"),
                "fork".to_owned(),
                option("control", &*control),
                format!("--serial=file={output}"),
                format!("--blk=id=blk0,path={}", trial.path("other")),
                format!("--blk=id=blk1,copy={copy}"),
            ];
            let asked = thread::spawn(move || {
                finish(
                    vmm(&arguments.each_ref().map(String::as_str))
                        .spawn()
                        .unwrap(),
                )
            });
            while !asked.is_finished() {
                let pids = fs::read_to_string(&children).unwrap();
                let Some(pid) = pids.split_ascii_whitespace().next() else {
                    continue;
                };
                let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
                // It may have given up by now, and its parent may have waited for it.
                let stopped = kill_process(pid, Signal::STOP);
                let status = format!("/proc/{}/stat", pid.as_raw_nonzero());
                let status = fs::read_to_string(status).unwrap_or_default();
                let is_there = stopped.is_ok() && !status.is_empty() && !status.contains(") Z ");
                if asked.is_finished() || !is_there {
                    break;
                }
                let unready = Self {
                    pid,
                    lock,
                    asked: Some(asked),
                    control,
                    output,
                    copy,
                };
                return (trial, child, unready);
            }
            let ended = asked.join().unwrap();
            assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        }
        panic!("no fork was found before it had given up");
    }

    /// What `ctl` has said.
    fn answer(&mut self) -> Ended {
        self.asked.take().unwrap().join().unwrap()
    }

    /// It gets its disk.
    fn goes_on(&self) {
        flock(&self.lock, FlockOperation::Unlock).unwrap();
        kill_process(self.pid, Signal::CONT).unwrap();
    }

    fn is_gone(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_nonzero()));
        stat.map_or(true, |stat| stat.contains(") Z "))
    }

    fn is_there(&self) -> [bool; 2] {
        [&self.control, &self.copy].map(|path| Path::new(path).exists())
    }
}

impl Drop for Unready {
    fn drop(&mut self) {
        // It may be gone.
        let _ = kill_process(self.pid, Signal::KILL);
    }
}

/// Asks a VM to end and waits until its guest has ended.
fn guest_ends(trial: &Trial, child: &Spawned) {
    let stop = ["ctl", &trial.path("control"), "stop"];
    let stop = vmm(&stop).spawn().unwrap();
    // It waits for the VM, which waits for its fork.
    thread::spawn(move || finish(stop));
    let tasks = format!("/proc/{}/task", pid_of(child).as_raw_nonzero());
    wait_until("its guest does not end", || {
        let tasks = fs::read_dir(&tasks).into_iter().flatten();
        let mut names =
            tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
        !names.any(|name| name.starts_with("vcpu"))
    });
}

#[test]
fn a_vm_that_ends_answers_for_its_fork_that_is_not_ready_yet() {
    let (trial, child, mut unready) = Unready::new();
    guest_ends(&trial, &child);
    unready.goes_on();
    let asked = unready.answer();
    assert_eq!(asked.status.code(), Some(0), "{asked:?}");
    assert!(asked.stdout.contains("forked: process "), "{asked:?}");
    assert_eq!(child.wait().code(), Some(0));
    wait_until("the fork stands still", || len(&unready.output) > 100);
    ctl(&unready.control, &["stop"]);
}

#[test]
fn a_vm_that_ends_waits_a_while_for_its_fork_and_then_there_is_none() {
    let (trial, child, mut unready) = Unready::new();
    guest_ends(&trial, &child);
    assert_eq!(child.wait().code(), Some(0));
    let asked = unready.answer();
    assert_eq!(asked.status.code(), Some(1), "{asked:?}");
    assert!(
        asked.stderr.contains("was not ready 5 s later"),
        "{asked:?}"
    );
    assert_eq!(unready.is_there(), [false; 2]);
    // It finds so itself, and its guest does not run.
    unready.goes_on();
    wait_until("it goes on", || unready.is_gone());
    assert_eq!(len(&unready.output), 0);
}

#[test]
fn a_vm_that_is_told_twice_to_end_does_not_wait_for_its_fork() {
    let (_trial, child, mut unready) = Unready::new();
    // One that comes before its guest has ended is the first one still.
    while !unready.asked.as_ref().unwrap().is_finished() {
        let _ = kill_process(pid_of(&child), Signal::INT);
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(child.wait().code(), Some(0));
    let asked = unready.answer();
    assert_eq!(asked.status.code(), Some(1), "{asked:?}");
    assert!(
        asked
            .stderr
            .contains("was not ready when that was to be over at once"),
        "{asked:?}"
    );
    assert_eq!(unready.is_there(), [false; 2]);
    assert!(!Path::new(&unready.output).exists());
    unready.goes_on();
    wait_until("it goes on", || unready.is_gone());
}

/// What is said of a fork whose VM was killed.
fn said_of_an_orphan(unready: &mut Unready, said: &str) {
    let asked = unready.answer();
    assert_eq!(asked.status.code(), Some(1), "{asked:?}");
    assert!(asked.stderr.contains(said), "{asked:?}");
}

#[test]
fn a_fork_whose_vm_was_killed_is_there_or_not_as_is_said() {
    // Both are killed.
    let (_trial, child, mut unready) = Unready::new();
    kill_and_wait(child);
    kill_process(unready.pid, Signal::KILL).unwrap();
    said_of_an_orphan(
        &mut unready,
        "there is no fork any more; what was made for it stays, since its guest may have run",
    );
    assert_eq!(unready.is_there(), [false, true]);
    // The fork is not ready, and does not run then.
    let (_trial, child, mut unready) = Unready::new();
    kill_and_wait(child);
    unready.goes_on();
    said_of_an_orphan(
        &mut unready,
        "there is no fork any more; what was made for it stays",
    );
    assert_eq!(unready.is_there(), [false, true]);
    assert_eq!(len(&unready.output), 0);
    // It runs, and its VM, which has gone on by then, has not said so yet.
    let (trial, child, mut unready) = Unready::new();
    parent_goes_on(&trial);
    kill_process(pid_of(&child), Signal::STOP).unwrap();
    unready.goes_on();
    wait_until("it does not go on", || len(&unready.output) > 100);
    kill_and_wait(child);
    let asked = unready.answer();
    assert_eq!(asked.status.code(), Some(0), "{asked:?}");
    assert!(asked.stdout.contains("forked: commands at "), "{asked:?}");
    assert_eq!(unready.is_there(), [true; 2]);
    ctl(&unready.control, &["stop"]);
}

#[test]
fn a_fork_starts_again_from_the_kernel_of_its_vm_and_one_of_a_restored_vm_does_not() {
    let trial = Trial::new();
    let child = start(&trial, &[]);
    let first = Fork::new(&trial, &trial.path("control"), "first", &[]);
    let second = Fork::new(&trial, &first.control, "second", &[]);
    for (restarts, control) in [
        (1, &second.control),
        (1, &first.control),
        (2, &second.control),
    ] {
        ctl(control, &["reset"]);
        wait_until("it does not start again", || {
            let status: Value = serde_json::from_str(&ctl(control, &["status", "--json"])).unwrap();
            status["restarts"] == restarts && status["state"] == "running"
        });
    }
    for fork in [&first, &second] {
        fork.goes_on();
    }
    parent_goes_on(&trial);
    drop((first, second));
    trial.said(&["pause"]);
    trial.said(&["snapshot", &trial.path("saved")]);
    stop(&trial, child);
    let child = trial.spawn(1, &["restore", &trial.path("saved")]);
    let fork = Fork::new(&trial, &trial.path("control"), "fork", &[]);
    let refused = finish(vmm(&["ctl", &fork.control, "reset"]).spawn().unwrap());
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        refused.stderr.contains("has no kernel to begin with"),
        "{refused:?}"
    );
    drop(fork);
    stop(&trial, child);
}

#[test]
fn a_vm_and_its_fork_that_start_again_at_once_read_their_kernel_and_initrd_apart() {
    let trial = Trial::new();
    // Long enough that each reads it while the other does.
    let initrd = fs::File::create(trial.path("initrd")).unwrap();
    initrd.set_len(16 << 20).unwrap();
    fs::copy(kernel(COUNT).path(), trial.path("kernel")).unwrap();
    let files = ["kernel", "initrd"].map(|name| option(name, trial.path(name)));
    let child = trial.spawn(0, &[&files[0], &files[1], "--guest-memory=32"]);
    trial.wait(0);
    let fork = Fork::new(&trial, &trial.path("control"), "fork", &[]);
    let both = [trial.path("control"), fork.control.clone()];
    for restarts in 1..=10 {
        thread::scope(|scope| {
            for control in &both {
                scope.spawn(|| ctl(control, &["reset"]));
            }
        });
        for control in &both {
            wait_until("it does not start again", || {
                let status = ctl(control, &["status", "--json"]);
                let status: Value = serde_json::from_str(&status).unwrap();
                status["restarts"] == restarts && status["state"] == "running"
            });
        }
    }
    fork.goes_on();
    parent_goes_on(&trial);
    // They have the same open files, whose positions neither has moved.
    for pid in [pid_of(&child), fork.pid()] {
        let folder = format!("/proc/{}", pid.as_raw_nonzero());
        let mut found = 0;
        for fd in fs::read_dir(format!("{folder}/fd")).unwrap() {
            let fd = fd.unwrap();
            let file = fs::read_link(fd.path()).unwrap_or_default();
            if ["kernel", "initrd"]
                .map(|name| trial.path(name).into())
                .contains(&file)
            {
                let number = fd.file_name();
                let info = format!("{folder}/fdinfo/{}", number.display());
                let info = fs::read_to_string(info).unwrap();
                assert!(info.starts_with("pos:\t0\n"), "{file:?}: {info}");
                found += 1;
            }
        }
        assert_eq!(found, 2);
    }
    drop(fork);
    stop(&trial, child);
}
