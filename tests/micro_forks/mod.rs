//! Guests that become two while their drivers and devices work: each goes on and finds everything as it was.

#[cfg(feature = "virtio-blk")]
mod disks;
#[cfg(any(feature = "virtio-net", feature = "virtio-vsock"))]
mod peers;

use std::fs;
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

#[cfg(target_arch = "x86_64")]
use crate::common::pool::HugePagePool;
use crate::common::{Ended, finish, vmm};
use crate::{passed, start};

/// How long a guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(120);
const SMALL: &str = "--guest-memory=16";

/// A VM, and its forks in the order in which they were made.
pub(crate) struct Family {
    folder: TempDir,
    parent: Option<Child>,
    forks: Vec<Forked>,
}

/// The process of a fork, and its files.
pub(crate) struct Forked {
    pid: u32,
    control: String,
    serial: String,
}

/// Waits until something is so.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

impl Family {
    /// `start` gets an option for the control socket.
    fn new(start: impl FnOnce(&str) -> Child) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let control = format!("--control={}", folder.path().join("control").display());
        let family = Self {
            parent: Some(start(&control)),
            folder,
            forks: Vec::new(),
        };
        wait_until("it does not answer", || {
            let control = family.path("control");
            Path::new(&control).exists() && !ctl(&control, &["status"]).stdout.contains("created")
        });
        family
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn parent(&mut self) -> &mut Child {
        self.parent.as_mut().unwrap()
    }

    /// Forks the VM with this control socket; says whether that was done, and asserts it of one that has not ended.
    fn forks_of(&mut self, control: &str, more: &[&str]) -> bool {
        let number = self.forks.len();
        let (new, serial) = (
            self.path(&format!("control{number}")),
            self.path(&format!("serial{number}")),
        );
        let arguments = [
            "fork",
            "--json",
            &format!("--control={new}"),
            &format!("--serial=file={serial}"),
        ];
        let asked = ctl(control, &[&arguments, more].concat());
        if !asked.status.success() {
            let has_ended = [
                "ended",
                "No such file",
                "nobody listens",
                "says nothing",
                "no answer",
            ];
            let said = format!("{}{}", asked.stdout, asked.stderr);
            assert!(
                has_ended.iter().any(|text| said.contains(text)),
                "{asked:?}"
            );
            return false;
        }
        let forked: serde_json::Value = serde_json::from_str(&asked.stdout).unwrap();
        self.forks.push(Forked {
            pid: forked["pid"].as_u64().unwrap().try_into().unwrap(),
            control: new,
            serial,
        });
        true
    }

    /// Forks the first one.
    fn forks(&mut self, more: &[&str]) -> bool {
        let control = self.path("control");
        self.forks_of(&control, more)
    }

    /// Waits until every fork has ended as its guest's test does; gives what each has printed.
    fn forks_pass(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        for fork in self.forks.drain(..) {
            wait_until("a fork does not end", || !is_alive(fork.pid));
            let said = fs::read_to_string(&fork.serial).unwrap();
            assert!(said.ends_with("EXIT 0\n"), "{said}");
            assert!(!Path::new(&fork.control).exists(), "its socket stays");
            all.push(said);
        }
        all
    }

    /// Waits until all have ended; gives the lines of the first one.
    fn passes(mut self) -> Vec<String> {
        // What the first one prints to, its forks have too.
        self.forks_pass();
        passed(finish(self.parent.take().unwrap()))
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        if let Some(parent) = &mut self.parent {
            let _ = parent.kill();
            let _ = parent.wait();
        }
        for fork in &self.forks {
            // Its socket is its own, whatever process has its number by now.
            ctl(&fork.control, &["stop"]);
        }
    }
}

fn ctl(control: &str, arguments: &[&str]) -> Ended {
    finish(
        vmm(&[&["ctl", control], arguments].concat())
            .spawn()
            .unwrap(),
    )
}

/// Numbers from `first` on, a line each, up to what the guest says at its end.
fn count_from(first: u64, lines: &[&str]) -> u64 {
    let numbers: Vec<u64> = lines.iter().map_while(|line| line.parse().ok()).collect();
    for (expected, number) in (first..).zip(&numbers) {
        assert_eq!(*number, expected, "{lines:?}");
    }
    first + numbers.len() as u64
}

#[test]
#[cfg(target_arch = "x86_64")]
fn no_page_of_memory_is_shared_once_it_is_written_to() {
    for pages in ["--huge-pages=off", "--huge-pages=transparent"] {
        let mut family = Family::new(|control| {
            start("pages rounds=200", &["--guest-memory=64", pages, control])
        });
        let mut count = 0;
        while count < 4 && family.forks(&[]) {
            count += 1;
        }
        assert!(count > 0, "it is over before it was forked");
        for said in family.forks_pass() {
            let lines: Vec<_> = said.lines().collect();
            assert_eq!(lines[lines.len() - 2], "15360 pages", "{said}");
        }
        let lines = family.passes();
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        assert_eq!(count_from(1, &lines), 201);
    }
}

/// The pages of a pool are copied, if it has as many more.
#[test]
#[cfg(target_arch = "x86_64")]
fn memory_of_a_pool_is_copied_or_the_fork_is_refused() {
    let Some(_pool) = HugePagePool::with(16) else {
        return;
    };
    let mut family = Family::new(|control| {
        start(
            "pages rounds=2000",
            &["--guest-memory=16", "--huge-pages=2M", control],
        )
    });
    assert!(family.forks(&[]));
    assert_eq!(HugePagePool::free(), 0);
    let control = family.path("control");
    let refused = ctl(
        &control,
        &["fork", &format!("--control={}", family.path("new"))],
    );
    let said = "needs 8 huge pages, and this host has not as many free any more";
    assert!(refused.stderr.contains(said), "{refused:?}");
    family.forks_pass();
    let lines = family.passes();
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    assert_eq!(count_from(1, &lines), 2001);
    assert_eq!(HugePagePool::free(), 16);
}

/// Each fork is one of the fork before it, which then ends.
#[test]
#[cfg(target_arch = "x86_64")]
fn registers_and_timers_go_on_through_forks_of_forks() {
    const GENERATIONS: usize = 30;
    for (mode, lean) in [
        ("none", "--lean=on"),
        ("periodic", "--lean=on"),
        ("deadline", "--lean=on"),
        ("pit", "--lean=off"),
        ("periodic", "--lean=off"),
    ] {
        let mut family = Family::new(|control| {
            let serial = format!("--serial=file={}.serial", &control["--control=".len()..]);
            start(
                &format!("ticks mode={mode}"),
                &[lean, control, SMALL, &serial],
            )
        });
        let (mut control, mut serial) = (family.path("control"), family.path("control.serial"));
        let mut said = String::new();
        for _ in 0..GENERATIONS {
            wait_until("it stands still", || {
                fs::read_to_string(&serial).is_ok_and(|said| said.lines().count() > 2)
            });
            // What was printed before is here, what comes after is there.
            assert!(ctl(&control, &["pause"]).status.success());
            assert!(family.forks_of(&control, &[]));
            assert!(ctl(&control, &["stop"]).status.success());
            wait_until("its socket stays", || !Path::new(&control).exists());
            said += &fs::read_to_string(&serial).unwrap();
            let fork = family.forks.last().unwrap();
            (control, serial) = (fork.control.clone(), fork.serial.clone());
        }
        let lines: Vec<_> = said.lines().collect();
        let whole = &lines[..lines.len() - 1];
        let next = count_from(1, whole);
        assert_eq!(next, 1 + whole.len() as u64, "{mode}: {said}");
        assert!(ctl(&control, &["stop"]).status.success());
        family.forks.clear();
        let _ = family.parent.take().unwrap().wait();
    }
}
