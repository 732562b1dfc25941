//! Where the consoles of forks may go, in a sandbox as outside of one, and where not.

#![allow(clippy::unwrap_used)]
#![cfg(target_arch = "x86_64")]

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;

use common::offspring::{Fork, ctl, parent_goes_on, start, stop, wait_until};
use common::trial::{COUNT, Spawned, Trial};
use common::{Ended, kernel, option, vmm};

/// Asks for a fork whose consoles go there.
fn fork(trial: &Trial, consoles: &[String]) -> Ended {
    let control = option("control", trial.path("new"));
    let consoles: Vec<_> = consoles.iter().map(String::as_str).collect();
    trial.ctl(&[&["fork", &*control], &*consoles].concat())
}

/// Why there is none.
fn refused(trial: &Trial, consoles: &[String]) -> String {
    let ended = fork(trial, consoles);
    assert!(matches!(ended.status.code(), Some(1 | 2)), "{ended:?}");
    assert!(!Path::new(&trial.path("new")).exists(), "it stays");
    ended.stderr
}

/// Nothing can be opened by its path there.
#[test]
fn the_consoles_of_a_fork_go_to_what_is_no_regular_file() {
    let trial = Trial::new();
    let fifo = trial.path("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let mut reader = options.open(&fifo).unwrap();
    for sandbox in ["auto", "off"] {
        let child = start(&trial, &["--console=null", &option("sandbox", sandbox)]);
        for file in ["/dev/null", "/dev/zero", "/dev/full", &fifo] {
            let consoles = ["serial", "console"].map(|name| format!("--{name}=file={file}"));
            let ended = fork(&trial, &consoles);
            assert_eq!(ended.status.code(), Some(0), "{sandbox} {file}: {ended:?}");
            let fork = trial.path("new");
            if *file == fifo {
                wait_until("it prints nothing", || {
                    matches!(reader.read(&mut [0; 64]), Ok(1..))
                });
            }
            let status = ctl(&fork, &["status"]);
            assert!(status.starts_with("state     running\n"), "{status}");
            ctl(&fork, &["stop"]);
            wait_until("its socket stays", || !Path::new(&fork).exists());
        }
        parent_goes_on(&trial);
        stop(&trial, child);
    }
}

#[test]
fn an_output_file_has_one_writer_of_all_vms_and_their_forks() {
    let trial = Trial::new();
    let child = start(&trial, &["--console=null"]);
    let to = |console: &str, name: &str| format!("--{console}=file={}", trial.path(name));
    // That of a fork whose guest prints nothing more, so that it is empty.
    let control = option("control", trial.path("first"));
    let console = to("console", "taken");
    trial.said(&["fork", &control, &console]);
    let first = trial.path("first");
    fs::hard_link(trial.path("taken"), trial.path("link")).unwrap();
    for name in ["taken", "link"] {
        let said = refused(&trial, &[to("serial", name)]);
        assert!(said.contains("a VM writes it"), "{said}");
        assert!(said.contains("cure: name another file"), "{said}");
    }
    let said = refused(&trial, &[to("serial", "new1"), to("console", "new1")]);
    assert!(said.contains("the other console writes it"), "{said}");
    // Nor is it another VM's.
    let image = kernel(COUNT);
    let start = [
        &*option("kernel", image.path()),
        "--guest-memory=32",
        &to("serial", "taken"),
    ];
    let ended = vmm(&start).spawn().unwrap().wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(2), "{said}");
    assert!(said.contains("another VM writes it"), "{said}");
    ctl(&first, &["stop"]);
    wait_until("its socket stays", || !Path::new(&first).exists());
    let fork = Fork::new(
        &trial,
        &trial.path("control"),
        "fork",
        &[&to("console", "taken")],
    );
    fork.goes_on();
    drop(fork);
    parent_goes_on(&trial);
    stop(&trial, child);
}

/// One that has no lock, since the VM did not open it.
#[test]
fn the_file_behind_the_stdout_of_a_vm_is_no_output_of_its_forks() {
    let trial = Trial::new();
    let image = kernel(COUNT);
    let control = option("control", trial.path("control"));
    let mut parent = vmm(&[
        &*option("kernel", image.path()),
        "--guest-memory=32",
        "--console=stdio",
        "--serial=null",
        &control,
    ]);
    let stdout = File::create(trial.path("out")).unwrap();
    parent.stdin(Stdio::null()).stdout(stdout);
    let child = Spawned::new(parent.spawn().unwrap());
    wait_until("it does not run", || {
        trial.ctl(&["status"]).stdout.contains("running")
    });
    let said = refused(&trial, &[format!("--serial=file={}", trial.path("out"))]);
    let text = "the VM itself writes it, as its console; name another file";
    assert!(said.contains(text), "{said}");
    stop(&trial, child);
}
