//! Ctrl-Alt-Del, as a driver of the guest's keyboard sees it.

use std::path::Path;
use std::process::Stdio;

use crate::common::{finish, read_until, vmm, wait};
use crate::{LEAN, is_pc, start};

fn ctl(socket: &Path, what: &str) -> String {
    let arguments = ["ctl", socket.to_str().unwrap(), what];
    let ended = finish(vmm(&arguments).stdout(Stdio::piped()).spawn().unwrap());
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    ended.stdout
}

#[test]
fn a_guest_with_a_driver_for_its_keyboard_resets_by_ctrl_alt_del() {
    if !is_pc() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control");
    let control = format!("--control={}", socket.display());
    for lean in LEAN {
        let mut child = start("keyboard", &[lean, "--keyboard=on", &control]);
        let stdout = child.stdout.as_mut().unwrap();
        read_until(stdout, "control 0x44, keyboard [fa, ab, 41]\nlistening\n");
        assert_eq!(ctl(&socket, "ctrl-alt-del"), "the guest was told\n");
        read_until(stdout, "ctrl-alt-del\n");
        let ended = finish(child);
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    }
}

#[test]
fn a_keyboard_without_an_interrupt_is_none() {
    if !is_pc() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control");
    let control = format!("--control={}", socket.display());
    let mut child = start("keyboard", &[&control]);
    read_until(child.stdout.as_mut().unwrap(), "listening\n");
    // The power button, of which this guest takes no notice.
    assert_eq!(ctl(&socket, "ctrl-alt-del"), "the guest was told\n");
    assert!(ctl(&socket, "status").starts_with("state     running\n"));
    ctl(&socket, "stop");
    assert_eq!(wait(&mut child).code(), Some(0));
}
