//! VMs that are processes, and their forks.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::trial::{COUNT, Spawned, Trial};
use super::{finish, kernel, option, vmm};

pub(crate) fn start(trial: &Trial, more: &[&str]) -> Spawned {
    let image = kernel(COUNT);
    let kernel = option("kernel", image.path());
    let child = trial.spawn(0, &[&[&*kernel, "--guest-memory=32"], more].concat());
    trial.wait(0);
    child
}

/// What a VM with this control socket answers.
pub(crate) fn ctl(control: &str, arguments: &[&str]) -> String {
    let ended = finish(
        vmm(&[&["ctl", control], arguments].concat())
            .spawn()
            .unwrap(),
    );
    assert_eq!(ended.status.code(), Some(0), "{arguments:?}: {ended:?}");
    ended.stdout
}

/// Waits until something is so.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn len(path: &str) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}

/// A fork, which does not outlive its test.
pub(crate) struct Fork {
    pub(crate) pid: u32,
    pub(crate) control: String,
    pub(crate) output: String,
}

impl Fork {
    /// Of the VM with this control socket; its files have this name.
    pub(crate) fn new(trial: &Trial, control: &str, name: &str, more: &[&str]) -> Self {
        let (new, output) = (trial.path(name), trial.path(&format!("output of {name}")));
        let (to, serial) = (option("control", &*new), format!("--serial=file={output}"));
        // That of an earlier one.
        let _ = fs::remove_file(&output);
        let said = ctl(control, &[&["fork", "--json", &to, &serial], more].concat());
        let forked: Value = serde_json::from_str(&said).unwrap();
        Self {
            pid: forked["pid"].as_u64().unwrap().try_into().unwrap(),
            control: new,
            output,
        }
    }

    pub(crate) fn goes_on(&self) {
        let before = len(&self.output);
        wait_until("the fork stands still", || len(&self.output) > before + 100);
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.pid.cast_signed()).unwrap()
    }
}

impl Drop for Fork {
    fn drop(&mut self) {
        // Its socket is its own, whatever process has its number by now.
        let arguments = ["ctl", &self.control, "stop"];
        finish(vmm(&arguments).spawn().unwrap());
    }
}

/// The VM goes on.
pub(crate) fn parent_goes_on(trial: &Trial) {
    let before = len(&trial.output(0));
    wait_until("the parent stands still", || {
        len(&trial.output(0)) > before + 100
    });
}

pub(crate) fn stop(trial: &Trial, child: Spawned) {
    trial.said(&["stop"]);
    assert_eq!(child.wait().code(), Some(0));
}

pub(crate) fn pid_of(child: &Spawned) -> Pid {
    Pid::from_raw(child.child().id().cast_signed()).unwrap()
}

pub(crate) fn kill_and_wait(child: Spawned) -> Option<i32> {
    kill_process(pid_of(&child), Signal::KILL).unwrap();
    child.wait().code()
}
