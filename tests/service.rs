//! A VM under a service manager, and in a container.

#![allow(clippy::unwrap_used)]
#![cfg(target_arch = "x86_64")]

mod common;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::trial::Spawned;
use common::{binary, finish, kernel, option, print, read_until, signal, vmm};

#[test]
fn a_service_manager_hears_that_the_vm_runs_is_well_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let heard = || {
        let mut buffer = [0; 128];
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    };
    let image = kernel(&[0xeb, 0xfe]);
    let kernel = format!("--kernel={}", image.path().display());
    for mode in ["--sandbox=strict", "--sandbox=off"] {
        let mut command = vmm(&[&*kernel, mode, "--shutdown-timeout=0"]);
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "20000");
        command.env_remove("WATCHDOG_PID");
        let vm = Spawned::new(command.spawn().unwrap());
        assert_eq!(heard(), "READY=1\nSTATUS=the VM runs");
        assert_eq!(heard(), "WATCHDOG=1");
        assert_eq!(heard(), "WATCHDOG=1");
        signal(vm.child(), "TERM");
        let mut last = heard();
        while last == "WATCHDOG=1" {
            last = heard();
        }
        assert_eq!(last, "STOPPING=1");
        let ended = vm.finish();
        assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(0), ""));
    }
}

#[test]
fn the_unit_for_systemd_is_one_and_leaves_little_open() {
    let unit =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd/vmm-reference@.service");
    let text = fs::read_to_string(unit).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // The program does not have to be there.
    let program = "/usr/local/bin/vmm-reference";
    assert!(text.contains(program));
    let instance = folder.path().join("vmm-reference@web.service");
    fs::write(&instance, text.replace(program, "/bin/true")).unwrap();
    let analyze = |arguments: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        command.args(arguments).arg(&instance).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map(finish)
    };
    let Ok(verified) = analyze(&["verify", "--man=no"]) else {
        eprintln!("SKIPPED: no systemd-analyze (Debian: systemd)");
        return;
    };
    assert_eq!(
        (verified.status.code(), &verified.stderr[..]),
        (Some(0), ""),
        "{verified:?}"
    );
    let secure = analyze(&["security", "--offline=true", "--threshold=30"]).unwrap();
    assert_eq!(secure.status.code(), Some(0), "{secure:?}");
}

/// A container's VM: its client and the leaders of its session and its group have no number there.
#[test]
fn a_client_from_outside_of_the_namespace_of_processes_is_served() {
    if !rustix::process::getuid().is_root() {
        eprintln!("SKIPPED: only root makes a namespace of processes");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel(&[print("up\n"), vec![0xeb, 0xfe]].concat());
    let socket = folder.path().join("control");
    let mut child = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--"])
        .arg(binary())
        .arg("--log-level=info")
        .arg(option("kernel", kernel.path()))
        .arg(option("control", &socket))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    read_until(child.stdout.as_mut().unwrap(), "up\n");
    let stopped = finish(
        vmm(&["ctl", socket.to_str().unwrap(), "stop"])
            .spawn()
            .unwrap(),
    );
    assert_eq!(stopped.status.code(), Some(0), "{}", stopped.stderr);
    let ended = finish(child);
    assert!(
        ended
            .stderr
            .contains("a client of another namespace of processes, user 0"),
        "{}",
        ended.stderr
    );
}
