//! The VMM on a terminal: raw while the guest runs, as it was before on every way out.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use crate::common::{
    RESET, echo, finish, kernel, not_ignored, option, print, read_until, signal, vmm, wait,
};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

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

/// Adds up what comes on COM1 until it is a `q`: rotates the sum, adds the byte. Prints the sum, resets.
fn sum() -> Vec<u8> {
    let mut code = vec![
        0x31, 0xdb, // xor ebx, ebx
        0x66, 0xba, 0xfd, 0x03, // next: mov dx, 0x3fd
        0xec, // in al, dx
        0xa8, 0x01, // test al, 1
        0x74, 0xf7, // jz next
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, // in al, dx
        0x0f, 0xb6, 0xc0, // movzx eax, al
        0xc1, 0xc3, 0x05, // rol ebx, 5
        0x01, 0xc3, // add ebx, eax
        0x3c, b'q', // cmp al, 'q'
        0x75, 0xe6, // jne next
    ];
    for _ in 0..4 {
        code.extend([0x88, 0xd8, 0xee]); // mov al, bl; out dx, al
        code.extend([0xc1, 0xeb, 0x08]); // shr ebx, 8
    }
    code.extend(RESET);
    code
}

#[test]
fn r58_what_is_pasted_reaches_the_guest_whole() {
    let mut terminal = Terminal::new();
    let child = terminal.start(&sum());
    // As fast as the terminal takes it, which is faster than the guest reads.
    let mut pasted: Vec<u8> = (0..200_000u32)
        .map(|n| b'A' + n.to_le_bytes()[n as usize % 3] % 26)
        .collect();
    pasted.push(b'q');
    terminal.type_keys(&pasted);
    let expected = pasted.iter().fold(0u32, |sum, byte| {
        sum.rotate_left(5).wrapping_add((*byte).into())
    });
    let output = wait_for_bytes(child);
    assert_eq!(output, expected.to_le_bytes());
}

#[test]
fn the_escape_keys_work_after_a_paste_that_the_guest_does_not_read() {
    let mut terminal = Terminal::new();
    let mut child = terminal.start(&[0xeb, 0xfe]);
    terminal.type_keys(&[b'x'; 500_000]);
    terminal.type_keys(b"\x01x");
    assert_eq!(wait(&mut child).code(), Some(0));
}

/// The rest of the output, when the VMM has ended with status 0.
fn wait_for_bytes(mut child: Child) -> Vec<u8> {
    let mut output = Vec::new();
    assert_eq!(wait(&mut child).code(), Some(0));
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut output)
        .unwrap();
    output
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

/// Waits until the process is stopped, or no longer.
fn wait_until(child: &Child, stopped: bool) {
    let path = format!("/proc/{}/stat", child.id());
    loop {
        let stat = std::fs::read_to_string(&path).unwrap();
        // Behind the name in brackets.
        let state = stat.rsplit(") ").next().unwrap();
        if state.starts_with('T') == stopped {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn wait_for_raw(terminal: &Terminal) {
    while !terminal.is_raw() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn r59_a_stop_restores_the_terminal_and_going_on_makes_it_raw_again() {
    let mut terminal = Terminal::new();
    let before = terminal.modes();
    let mut child = terminal.start(&echo());
    for _ in 0..3 {
        signal(&child, "TSTP");
        wait_until(&child, true);
        same(&before, &terminal.modes());
        signal(&child, "CONT");
        wait_for_raw(&terminal);
        terminal.type_keys(b"\x03x");
        read_until(child.stdout.as_mut().unwrap(), "\x03x");
    }
    // Stopped without a warning; a shell sets the terminal as it likes it.
    signal(&child, "STOP");
    wait_until(&child, true);
    tcsetattr(&terminal.screen, OptionalActions::Now, &before).unwrap();
    signal(&child, "CONT");
    wait_for_raw(&terminal);
    // And one that leaves it as it is.
    signal(&child, "STOP");
    wait_until(&child, true);
    signal(&child, "CONT");
    wait_until(&child, false);
    terminal.type_keys(b"\x03yq");
    assert_eq!(wait(&mut child).code(), Some(0));
    same(&before, &terminal.modes());
}

#[test]
fn r59_a_quit_restores_the_terminal_before_it_does_what_it_always_does() {
    let terminal = Terminal::new();
    let before = terminal.modes();
    if not_ignored(["QUIT"]).is_empty() {
        return;
    }
    let mut child = terminal.start(&echo());
    signal(&child, "QUIT");
    assert_eq!(wait(&mut child).signal(), Some(3));
    same(&before, &terminal.modes());
}

#[test]
fn r59_a_crash_restores_the_terminal() {
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

/// The terminal stays the parent's: raw while it runs, whatever its fork does; keys are the parent's; signals are followed.
#[test]
#[cfg(all(feature = "control", feature = "snapshot", feature = "serial"))]
fn a_fork_leaves_the_terminal_alone() {
    let mut terminal = Terminal::new();
    let before = terminal.modes();
    let folder = tempfile::tempdir().unwrap();
    let [control, new] = ["control", "new"].map(|name| folder.path().join(name));
    let kernel = kernel(&[print("up"), echo()].concat());
    let mut child = vmm(&[
        &option("kernel", kernel.path()),
        &option("control", &control),
    ])
    .stdin(Stdio::from(terminal.screen.try_clone().unwrap()))
    .spawn()
    .unwrap();
    read_until(child.stdout.as_mut().unwrap(), "up");
    let ctl = |socket: &PathBuf, what: &[&str]| {
        let socket = socket.display().to_string();
        let ended = finish(vmm(&[&["ctl", &socket], what].concat()).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    };
    for _ in 0..2 {
        ctl(&control, &["fork", &option("control", &new)]);
        assert!(terminal.is_raw());
        terminal.type_keys(b"a");
        read_until(child.stdout.as_mut().unwrap(), "a");
        ctl(&new, &["stop"]);
        while new.exists() {
            std::thread::yield_now();
        }
        assert!(terminal.is_raw(), "the fork has restored it");
    }
    if not_ignored(["QUIT"]).is_empty() {
        ctl(&control, &["stop"]);
        wait(&mut child);
    } else {
        signal(&child, "QUIT");
        assert_eq!(wait(&mut child).signal(), Some(3));
    }
    same(&before, &terminal.modes());
}
