//! `restore --memory` and `--clock`: where the memory of a restored VM comes from, and what time its guest finds.

#![allow(clippy::unwrap_used)]
#![cfg(target_arch = "x86_64")]

mod common;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::faults::{Handler, listen, may_handle};
use common::trial::{COUNT, Spawned, Trial};
use common::{Ended, finish, not_ignored, option, refused, signal, vmm};

/// `mov edi, 0x400000; mov ecx, 0x80000; mov eax, 0x55555555; rep stosq`: fills 4 MiB, before [`COUNT`].
const FILL: &[u8] = &[
    0xbf, 0, 0, 0x40, 0, 0xb9, 0, 0, 8, 0, 0xb8, 0x55, 0x55, 0x55, 0x55, 0xf3, 0x48, 0xab,
];
const FILLED: u64 = 4 << 20;
/// What a VM beside it may touch by itself, and what the kernel maps around it.
const LITTLE: u64 = 1 << 20;

/// `start: mov esi, 0x400000; next: mov al, [rsi]; mov dx, 0x3f8; out dx, al; add esi, 0x1000; cmp esi, 0x800000; jne next;
/// jmp start`: prints what the pages of these 4 MiB begin with, for ever.
const WALK: &[u8] = &[
    0xbe, 0, 0, 0x40, 0, 0x8a, 0x06, 0x66, 0xba, 0xf8, 0x03, 0xee, 0x81, 0xc6, 0, 0x10, 0, 0, 0x81,
    0xfe, 0, 0, 0x80, 0, 0x75, 0xeb, 0xeb, 0xe4,
];
/// Has KVM keep its clock (kvmclock) at 0x300000, then prints lines for ever with the time that was written there last: 8
/// bytes of nanoseconds, the lowest first, each half of a byte as a letter from A on. `mov ecx, 0x4b564d01; mov eax,
/// 0x300001; xor edx, edx; wrmsr`, and then as in tests/snapshot.rs.
const CLOCK: &[u8] = &[
    0xb9, 1, 0x4d, 0x56, 0x4b, 0xb8, 1, 0, 0x30, 0, 0x31, 0xd2, 0x0f, 0x30, 0xbe, 0x10, 0, 0x30, 0,
    0x66, 0xba, 0xf8, 3, 0xb0, 0x0a, 0xee, 0x8a, 6, 0xc0, 0xe8, 4, 4, 0x41, 0xee, 0x8a, 6, 0x24,
    0x0f, 4, 0x41, 0xee, 0xff, 0xc6, 0x81, 0xfe, 0x18, 0, 0x30, 0, 0x75, 0xe7, 0xeb, 0xd9,
];
/// The VM is killed or has ended by then.
const PATIENCE: Duration = Duration::from_secs(60);

/// Saves a VM that has memory with content, and then runs `code`; `more` are options of its.
fn save(trial: &Trial, code: &[u8], more: &[&str]) {
    let kernel = common::kernel(&[FILL, code].concat());
    let kernel = option("kernel", kernel.path());
    let plain = ["--rng=off", "--vmgenid=off", "--guest-memory=32", &kernel];
    let child = trial.spawn(0, &[&plain[..], more].concat());
    trial.wait(0);
    trial.said(&["pause"]);
    trial.said(&["snapshot", &trial.path("saved")]);
    trial.said(&["stop"]);
    child.finish();
}

/// The saved VM's file of memory.
fn memory_file(trial: &Trial, folder: &str) -> String {
    let entries = fs::read_dir(trial.path(folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().path().to_str().unwrap().to_owned());
    let mut names = names.filter(|name| name.contains("/memory-"));
    names.next().unwrap()
}

/// Bytes that a process has in memory of the mappings of a file (proc_pid_smaps(5)).
fn resident(child: &Child, file: &str) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", child.id())).unwrap();
    let mut is_of_file = false;
    let mut sum = 0;
    for line in maps.lines() {
        match line.strip_prefix("Rss:") {
            Some(rss) if is_of_file => {
                sum += rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10;
            }
            None if line.contains(" rw-p ") || line.contains(" r--p ") => {
                is_of_file = line.ends_with(file);
            }
            _ => {}
        }
    }
    sum
}

/// Waits until a VM that begins paused is there.
fn is_paused(trial: &Trial) {
    let mut status = trial.said(&["status"]);
    while status.starts_with("state     created\n") {
        status = trial.said(&["status"]);
    }
    assert!(status.starts_with("state     paused\n"), "{status}");
}

/// The restored VM stands still, and has exactly the memory that was saved.
fn has_what_was_saved(trial: &Trial, before: &str) {
    let again = trial.path("again");
    let _ = fs::remove_dir_all(&again);
    trial.said(&["snapshot", &again]);
    let after = memory_file(trial, "again");
    assert!(fs::read(before).unwrap() == fs::read(after).unwrap());
}

#[test]
fn prefaulted_memory_is_there_before_the_guest_goes_on_and_holes_are_not() {
    let trial = Trial::new();
    save(&trial, COUNT, &[]);
    let saved = trial.path("saved");
    let memory = memory_file(&trial, "saved");
    let stored = fs::metadata(&memory).unwrap().blocks() * 512;
    assert!(stored > FILLED && stored < FILLED + LITTLE, "{stored}");
    for (generation, how) in [(1, "lazy"), (2, "prefault")] {
        let how = format!("--memory={how}");
        let child = trial.spawn(generation, &["restore", &saved, "--paused", &how]);
        is_paused(&trial);
        let resident = resident(child.child(), &memory);
        let is_there = resident >= stored;
        assert_eq!(is_there, generation == 2, "{how}: {resident} of {stored}");
        assert!(resident < stored + LITTLE, "{how}: {resident} of {stored}");
        has_what_was_saved(&trial, &memory);
        trial.said(&["resume"]);
        trial.wait(generation);
        trial.said(&["stop"]);
        child.finish();
    }
}

/// What cannot be a file's mapping is read, and is there in any case.
#[test]
fn shared_memory_may_be_prefaulted_too() {
    let trial = Trial::new();
    save(&trial, COUNT, &["--memory-backing=shared"]);
    let saved = trial.path("saved");
    let child = trial.spawn(1, &["restore", &saved, "--paused", "--memory=prefault"]);
    is_paused(&trial);
    has_what_was_saved(&trial, &memory_file(&trial, "saved"));
    trial.said(&["stop"]);
    child.finish();
}

/// The options that restore a VM with a handler on a socket.
fn with_handler(trial: &Trial) -> [String; 3] {
    let how = format!("--memory=uffd={}", trial.path("faults"));
    ["restore".to_owned(), trial.path("saved"), how]
}

#[test]
fn a_handler_brings_the_memory_and_the_vmm_needs_no_file() {
    if !may_handle() {
        return;
    }
    let trial = Trial::new();
    save(&trial, COUNT, &[]);
    let memory = trial.path("elsewhere");
    fs::rename(memory_file(&trial, "saved"), &memory).unwrap();
    let file = File::open(&memory).unwrap();
    let handler = listen(Path::new(&trial.path("faults")), file, |mut handler| {
        handler.serve(u64::MAX);
        handler.brought
    });
    let restore = with_handler(&trial);
    let mut restore: Vec<_> = restore.iter().map(String::as_str).collect();
    restore.push("--paused");
    let child = trial.spawn(1, &restore);
    is_paused(&trial);
    has_what_was_saved(&trial, &memory);
    trial.said(&["resume"]);
    trial.wait(1);
    trial.said(&["stop"]);
    let ended = child.finish();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    // All of it: what is saved has to be there.
    assert_eq!(handler.join().unwrap(), 32 << 20 >> 12);
    let all = [0, 1].map(|generation| fs::read(trial.output(generation)).unwrap());
    for pair in all.concat().windows(2) {
        assert_eq!(pair[1], pair[0].wrapping_add(1));
    }
}

#[test]
fn a_handler_may_be_connected_by_whoever_starts_the_vmm() {
    if !may_handle() {
        return;
    }
    let trial = Trial::new();
    save(&trial, WALK, &[]);
    let memory = trial.path("elsewhere");
    fs::rename(memory_file(&trial, "saved"), &memory).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let file = File::open(&memory).unwrap();
    let handler = thread::spawn(move || {
        let mut handler = Handler::new(theirs, file);
        handler.serve(u64::MAX);
    });
    let saved = trial.path("saved");
    let control = option("control", trial.path("control"));
    let serial = format!("--serial=file={}", trial.output(1));
    let mut restore = vmm(&["restore", &saved, "--memory=uffd=fd=0", &serial, &control]);
    let child = Spawned::new(restore.stdin(OwnedFd::from(ours)).spawn().unwrap());
    drop(restore);
    while fs::read(trial.output(1)).unwrap_or_default().len() < 100 {
        thread::sleep(Duration::from_millis(1));
    }
    trial.said(&["stop"]);
    let ended = child.finish();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    handler.join().unwrap();
    // What is no such descriptor.
    let refused = |how: &str, stdin: Stdio, said: &str| {
        let how = format!("--memory={how}");
        let mut restore = vmm(&["restore", &saved, "--serial=null", &how]);
        let ended = finish(restore.stdin(stdin).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains(said), "{ended:?}");
    };
    refused("uffd=fd=77", Stdio::null(), "--memory=uffd=fd=77: Bad file");
    refused("uffd=fd=0", Stdio::null(), "Socket operation on non-socket");
    refused("uffd=fd=x", Stdio::null(), "takes the number of");
    let (datagrams, _other) = UnixDatagram::pair().unwrap();
    let datagrams = OwnedFd::from(datagrams).into();
    refused("uffd=fd=0", datagrams, "no Unix socket for streams");
    let listener = UnixListener::bind(trial.path("listener")).unwrap();
    let listener = OwnedFd::from(listener).into();
    refused("uffd=fd=0", listener, "is not connected");
}

/// What becomes of a handler that has served enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Goes,
    /// It reads nothing more, and answers nothing, as long as the VM is there.
    IsSilent,
}

/// How a saved VM ends that walks through its memory, of which its handler brings so many pages; then `act` does something.
fn ended(trial: &Trial, most: u64, then: Then, act: impl FnOnce(&Child)) -> Ended {
    let file = File::open(memory_file(trial, "saved")).unwrap();
    let (served, was_served) = mpsc::channel();
    let (ends, has_ended) = mpsc::channel::<()>();
    let socket = trial.path("faults");
    let _ = fs::remove_file(&socket);
    let handler = listen(Path::new(&socket), file, move |mut handler| {
        handler.serve(most);
        served.send(()).unwrap();
        if then == Then::IsSilent {
            let _ = has_ended.recv();
        }
    });
    let mut child = vmm(&with_handler(trial).each_ref().map(String::as_str));
    let control = option("control", trial.path("control"));
    let child = child.args(["--serial=null", &control]).spawn().unwrap();
    was_served.recv().unwrap();
    act(&child);
    let begin = Instant::now();
    let ended = finish(child);
    assert!(begin.elapsed() < PATIENCE, "{ended:?}");
    drop(ends);
    handler.join().unwrap();
    ended
}

#[test]
fn r74_a_vm_whose_handler_goes_says_so_and_ends() {
    if !may_handle() {
        return;
    }
    let trial = Trial::new();
    save(&trial, WALK, &[]);
    for most in [0, 1, 5, 100] {
        let ended = ended(&trial, most, Then::Goes, |_| ());
        assert_eq!(ended.status.code(), Some(1), "{most}: {ended:?}");
        let said = "error: guest memory is lost: the handler of its page faults ";
        assert!(ended.stderr.starts_with(said), "{most}: {ended:?}");
        assert!(
            ended.stderr.contains("cure: restore the VM again"),
            "{ended:?}"
        );
    }
}

#[test]
fn r74_a_vm_whose_handler_is_silent_can_be_ended() {
    if !may_handle() {
        return;
    }
    let terminate = |child: &Child| {
        // It waits for the next page.
        thread::sleep(Duration::from_millis(300));
        signal(child, "TERM");
    };
    let trial = Trial::new();
    save(&trial, WALK, &[]);
    let ended = ended(&trial, 100, Then::IsSilent, terminate);
    assert!(matches!(ended.status.code(), Some(0 | 1)), "{ended:?}");
}

/// Waits until the main loop of a VM, on its process' first thread, waits for other threads (futex(2)) and not for events.
fn waits_for_vcpus(child: &Child) {
    const FUTEX: &str = "202 ";
    let begin = Instant::now();
    let call = || fs::read_to_string(format!("/proc/{}/syscall", child.id())).unwrap();
    while !call().starts_with(FUTEX) {
        assert!(begin.elapsed() < PATIENCE, "{}", call());
        thread::sleep(Duration::from_millis(1));
    }
}

/// Likewise, and its main loop, which hears signals, waits for the vCPU.
#[test]
fn r74_a_vm_whose_handler_is_silent_hears_signals_while_it_is_paused() {
    if !may_handle() {
        return;
    }
    let trial = Trial::new();
    save(&trial, WALK, &[]);
    let control = trial.path("control");
    for name in not_ignored(["TERM", "INT"]) {
        let pause = |child: &Child| {
            let pauses = vmm(&["ctl", &control, "pause"]).spawn().unwrap();
            waits_for_vcpus(child);
            signal(child, name);
            finish(pauses);
        };
        let ended = ended(&trial, 100, Then::IsSilent, pause);
        assert!(matches!(ended.status.code(), Some(0 | 1)), "{ended:?}");
    }
}

/// Whoever pauses it waits for a vCPU that waits for its page.
#[test]
fn r74_a_vm_whose_handler_is_silent_can_be_stopped_while_it_is_paused() {
    if !may_handle() {
        return;
    }
    let trial = Trial::new();
    save(&trial, WALK, &[]);
    let control = trial.path("control");
    let stop = |child: &Child| {
        let pauses = vmm(&["ctl", &control, "pause"]).spawn().unwrap();
        waits_for_vcpus(child);
        trial.said(&["stop"]);
        finish(pauses);
    };
    let ended = ended(&trial, 100, Then::IsSilent, stop);
    assert!(matches!(ended.status.code(), Some(0 | 1)), "{ended:?}");
}

/// With a handler that takes its time, as a slow disk would.
#[test]
fn a_vm_that_is_saved_says_how_far_it_is_and_stays_as_it_is() {
    if !may_handle() {
        return;
    }
    let trial = Trial::new();
    save(&trial, WALK, &[]);
    let file = File::open(memory_file(&trial, "saved")).unwrap();
    let handler = listen(Path::new(&trial.path("faults")), file, |mut handler| {
        let mut most = 0;
        while handler.brought >= most {
            most += 50;
            handler.serve(most);
            thread::sleep(Duration::from_millis(5));
        }
    });
    let restore = with_handler(&trial);
    let mut restore: Vec<_> = restore.iter().map(String::as_str).collect();
    restore.push("--paused");
    let child = trial.spawn(1, &restore);
    let (control, again) = (trial.path("control"), trial.path("again"));
    let saves = vmm(&["ctl", &control, "snapshot", &again]).spawn().unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let status: serde_json::Value =
            serde_json::from_str(&trial.said(&["status", "--json"])).unwrap();
        let Some(done) = status["saving"]["done_bytes"].as_u64() else {
            assert!(seen.is_empty(), "{seen:?}");
            continue;
        };
        assert_eq!(status["saving"]["total_bytes"], 32 << 20);
        assert!(seen.last().is_none_or(|before| *before <= done), "{seen:?}");
        seen.push(done);
    }
    for command in ["resume", "pause"] {
        let refused = trial.ctl(&[command]);
        assert!(
            refused.stderr.contains("while the machine is saved"),
            "{refused:?}"
        );
    }
    trial.said(&["metrics"]);
    let saved = finish(saves);
    assert_eq!(saved.status.code(), Some(0), "{saved:?}");
    assert!(Path::new(&again).join("state").exists());
    trial.said(&["resume"]);
    trial.said(&["stop"]);
    assert_eq!(child.finish().status.code(), Some(0));
    handler.join().unwrap();
}

#[test]
fn a_handler_that_cannot_be_is_refused_by_name() {
    let trial = Trial::new();
    save(&trial, COUNT, &["--memory-backing=shared"]);
    let restore = with_handler(&trial);
    let restore = restore.each_ref().map(String::as_str);
    let nobody = format!(
        "error: --memory=uffd={}: No such file",
        trial.path("faults")
    );
    let cure = "cure: start the handler of page faults first";
    refused(&restore, &[&nobody, cure]);
    let file = File::open(memory_file(&trial, "saved")).unwrap();
    // It never hears of a VM.
    let _handler = listen(Path::new(&trial.path("faults")), file, drop);
    let cause = "error: --memory=uffd: the saved machine has --memory-backing=shared";
    refused(&restore, &[cause, "cure: restore it with --memory=lazy"]);
}

/// The time that a guest has printed first.
fn clock(printed: &[u8]) -> Option<Duration> {
    let text = String::from_utf8_lossy(printed);
    // The first line is the rest of one.
    let mut lines = text.lines().skip(1).filter(|line| line.len() == 16);
    let digits = lines.next()?.bytes().map(|letter| u64::from(letter - b'A'));
    let digits: Vec<_> = digits.collect();
    let bytes = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]);
    let nanoseconds = bytes.rev().fold(0, |sum, byte| sum << 8 | byte);
    Some(Duration::from_nanos(nanoseconds))
}

/// What the guest's clock says right after it was restored.
fn restored_clock(trial: &Trial, generation: u32, how: &[&str]) -> Duration {
    let saved = trial.path("saved");
    let child = trial.spawn(generation, &[&["restore", &saved], how].concat());
    let begin = Instant::now();
    let time = loop {
        let printed = fs::read(trial.output(generation)).unwrap();
        match clock(&printed) {
            Some(time) => break time,
            None => assert!(begin.elapsed() < PATIENCE),
        }
        thread::sleep(Duration::from_millis(1));
    };
    trial.said(&["stop"]);
    let ended = child.finish();
    assert!(ended.stderr.is_empty(), "{ended:?}");
    time
}

#[test]
fn the_clock_goes_on_where_it_stopped_or_where_it_would_be() {
    const SLACK: Duration = Duration::from_millis(500);
    let trial = Trial::new();
    let begin = Instant::now();
    save(&trial, CLOCK, &[]);
    let passed = Instant::now();
    thread::sleep(Duration::from_secs(3));
    let stopped = restored_clock(&trial, 1, &[]);
    let again = restored_clock(&trial, 2, &["--clock=stopped"]);
    assert!(stopped.abs_diff(again) < SLACK, "{stopped:?} {again:?}");
    // It was moved on once the VM had been saved for at least as long as this.
    let passed = passed.elapsed();
    let moved = restored_clock(&trial, 3, &["--clock=realtime"]) - stopped;
    assert!(moved + SLACK > passed, "{moved:?} of {passed:?}");
    assert!(moved < begin.elapsed() + SLACK, "{moved:?}");
}
