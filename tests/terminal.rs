//! The VMM on a terminal: raw while the guest runs, as it was before on every way out.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use common::{
    RESET, echo, finish, kernel, not_ignored, option, print, read_until, signal, vmm, wait,
};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

/// A pseudo-terminal: what is typed, and the side that a program sees.
struct Terminal {
    keyboard: File,
    screen: File,
}

impl Terminal {
    fn new() -> Self {
        let keyboard: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let path = PathBuf::from(
            ptsname(&keyboard, Vec::new())
                .unwrap()
                .into_string()
                .unwrap(),
        );
        Self {
            keyboard: keyboard.into(),
            screen: OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .unwrap(),
        }
    }

    fn modes(&self) -> Termios {
        tcgetattr(&self.screen).unwrap()
    }

    fn is_raw(&self) -> bool {
        let modes = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        !self.modes().local_modes.intersects(modes)
    }

    /// Starts the VMM on this terminal, with a guest that prints `up`; its output is a pipe.
    fn start(&self, code: &[u8]) -> Child {
        let kernel = kernel(&[print("up"), code.to_vec()].concat());
        let mut child = vmm(&[&option("kernel", kernel.path())])
            .stdin(Stdio::from(self.screen.try_clone().unwrap()))
            .spawn()
            .unwrap();
        read_until(child.stdout.as_mut().unwrap(), "up");
        child
    }

    fn type_keys(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }
}

#[track_caller]
fn same(before: &Termios, after: &Termios) {
    assert_eq!(before.input_modes, after.input_modes);
    assert_eq!(before.output_modes, after.output_modes);
    assert_eq!(before.local_modes, after.local_modes);
}

#[test]
fn keys_reach_the_guest_unchanged_and_escape_keys_do_not() {
    let mut terminal = Terminal::new();
    let before = terminal.modes();
    let mut child = terminal.start(&echo());
    assert!(terminal.is_raw());
    let stdout = child.stdout.as_mut().unwrap();
    // Ctrl-C, carriage return and Ctrl-Z are the guest's; Ctrl-a twice sends one.
    terminal.type_keys(b"a\x03\r\x1a\x01\x01b");
    read_until(stdout, "a\x03\r\x1a\x01b");
    terminal.type_keys(b"\x01h");
    read_until(stdout, "end the VM");
    terminal.type_keys(b"\x01x");
    assert_eq!(wait(&mut child).code(), Some(0));
    same(&before, &terminal.modes());
}

#[test]
fn signals_restore_the_terminal() {
    for name in not_ignored(["TERM", "INT", "HUP"]) {
        let terminal = Terminal::new();
        let before = terminal.modes();
        let mut child = terminal.start(&[0xeb, 0xfe]);
        assert!(terminal.is_raw());
        signal(&child, name);
        assert_eq!(wait(&mut child).code(), Some(0), "{name}");
        same(&before, &terminal.modes());
    }
}

#[test]
fn a_crash_restores_the_terminal() {
    // ud2 without an IDT: a triple fault.
    let terminal = Terminal::new();
    let before = terminal.modes();
    let child = terminal.start(&[0x0f, 0x0b]);
    assert_eq!(finish(child).status.code(), Some(3));
    same(&before, &terminal.modes());
}

#[test]
fn a_refused_value_leaves_the_terminal_alone() {
    let terminal = Terminal::new();
    let before = terminal.modes();
    let child = vmm(&["--kernel=/nonexistent"])
        .stdin(Stdio::from(terminal.screen.try_clone().unwrap()))
        .spawn()
        .unwrap();
    assert_eq!(finish(child).status.code(), Some(2));
    same(&before, &terminal.modes());
}

#[test]
fn a_terminal_that_goes_away_ends_the_input_and_not_the_guest() {
    let mut terminal = Terminal::new();
    let mut child = terminal.start(&echo());
    terminal.type_keys(b"x");
    read_until(child.stdout.as_mut().unwrap(), "x");
    drop(terminal);
    signal(&child, "TERM");
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn the_master_of_a_pseudo_terminal_may_be_the_output() {
    let terminal = Terminal::new();
    let kernel = kernel(&[print("up\n"), RESET.to_vec()].concat());
    let mut child = vmm(&[&option("kernel", kernel.path())])
        .stdout(Stdio::from(terminal.keyboard.try_clone().unwrap()))
        .spawn()
        .unwrap();
    read_until(&mut &terminal.screen, "up\n");
    assert_eq!(wait(&mut child).code(), Some(0));
}
