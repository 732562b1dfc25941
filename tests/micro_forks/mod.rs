//! Guests that become two while their drivers and devices work: each goes on and finds everything as it was.

#[cfg(feature = "virtio-blk")]
mod disks;
#[cfg(target_arch = "x86_64")]
mod machine;
#[cfg(any(feature = "virtio-net", feature = "virtio-vsock"))]
mod peers;

use std::fs;
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::{Ended, finish, vmm};
use crate::passed;

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
