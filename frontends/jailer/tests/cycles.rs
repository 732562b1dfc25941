//! Jailed machines that come and go leave nothing behind but what a client clears away.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../../tests/common/kernels.rs"]
#[allow(dead_code)]
mod kernels;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use common::{GID, House, NAME, UID, mounted};
use kernels::{RESET, elf};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Names a static `firecracker`.
const PROGRAM: &str = "VMM_TEST_FIRECRACKER";
/// How many machines.
const CYCLES: &str = "VMM_TEST_CYCLES";
/// Seconds that the end of one may take.
const LIMIT: i64 = 30;

const CONFIG: &str = r#"{
    "boot-source": { "kernel_image_path": "/kernel", "boot_args": "" },
    "drives": [{ "drive_id": "a", "is_root_device": false, "path_on_host": "/disk", "is_read_only": false }],
    "vsock": { "guest_cid": 3, "uds_path": "/v" },
    "logger": { "log_path": "/log" },
    "metrics": { "metrics_path": "/metrics" }
}"#;

/// All folders below one.
fn folders(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut left = vec![folder.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
            }
        }
        found.insert(folder);
    }
    found
}

/// What the host has of jails: mounts, cgroups, sockets and processes, and what is open here.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    mounts: Vec<String>,
    cgroups: BTreeSet<PathBuf>,
    sockets: Vec<String>,
    processes: Vec<PathBuf>,
    open: usize,
}

fn found(house: &House, cgroups: &Path, parent: &str) -> Found {
    let lines = |file: &str, text: &str| -> Vec<String> {
        let file = fs::read_to_string(file).unwrap();
        let lines = file.lines().filter(|line| line.contains(text));
        lines.map(str::to_owned).collect()
    };
    let house = house.path().to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let jailed = |process: &PathBuf| {
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        // One that has ended is its reaper's, which takes its time.
        status.contains(&format!("\nUid:\t{UID}\t")) && !status.contains("\nState:\tZ")
    };
    Found {
        mounts: lines("/proc/self/mountinfo", ""),
        cgroups: folders(cgroups)
            .into_iter()
            .filter(|folder| folder.to_string_lossy().contains(parent))
            .collect(),
        sockets: lines("/proc/net/unix", house),
        processes: processes.map(|entry| entry.path()).filter(jailed).collect(),
        open: fs::read_dir("/proc/self/fd").unwrap().count(),
    }
}

/// Waits for the end of a process that may have ended.
fn wait_for_end(pid: &str) {
    let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    let limit = Timespec {
        tv_sec: LIMIT,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "{pid:?} runs on");
}

/// A machine, from its jail to the end of its guest.
fn live(house: &House, id: &str, more: &[&str]) {
    let root = house.root(id);
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("kernel"), elf(&RESET)).unwrap();
    fs::write(root.join("config"), CONFIG).unwrap();
    fs::write(root.join("disk"), [0; 4096]).unwrap();
    for path in [root.clone(), root.join("disk")] {
        std::os::unix::fs::chown(path, Some(UID), Some(GID)).unwrap();
    }
    let mut jailer = house.jailer(id);
    jailer
        .args(more)
        .args(["--", "--config-file", "/config", "--api-sock", "/api"]);
    let output = jailer.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{more:?}: {output:?}");
    if let Ok(pid) = fs::read_to_string(root.join(format!("{NAME}.pid"))) {
        wait_for_end(&pid);
    }
    let log = fs::read_to_string(root.join("log")).unwrap();
    assert!(log.contains("exiting successfully. exit_code=0"), "{log}");
    // It ran: there is a line from the start, and one from the end.
    let metrics = fs::read_to_string(root.join("metrics")).unwrap();
    assert_eq!(metrics.lines().count(), 2, "{metrics}");
}

#[test]
#[ignore = "needs a static firecracker, which `cargo xtask test --full` builds"]
fn machines_that_come_and_go_leave_nothing_but_what_a_client_clears_away() {
    let Some(house) = House::new() else { return };
    let program = std::env::var_os(PROGRAM).unwrap_or_else(|| panic!("{PROGRAM} names none"));
    fs::copy(program, house.program()).unwrap();
    let Some(cgroups) = mounted("1").or_else(|| mounted("2")) else {
        eprintln!("SKIPPED: no cgroups with a pids controller");
        return;
    };
    let version = if mounted("1").is_some() { "1" } else { "2" };
    let cycles = std::env::var(CYCLES).map_or(9, |cycles| cycles.parse().unwrap());
    let parent = format!("vmm-jailer-test-{}", std::process::id());
    let before = found(&house, &cgroups, &parent);
    let begin = Instant::now();
    for number in 0..cycles {
        let id = format!("m{number}");
        let limits = [
            "--cgroup-version",
            version,
            "--parent-cgroup",
            &parent,
            "--cgroup",
            "pids.max=64",
            "--resource-limit",
            "no-file=1024",
        ];
        let way: &[&str] = match number % 3 {
            0 => &[],
            1 => &["--daemonize"],
            _ => &["--daemonize", "--new-pid-ns"],
        };
        live(&house, &id, &[&limits, way].concat());
        // Its cgroup has no process and its folder no mount, or neither could be taken away.
        fs::remove_dir(cgroups.join(&parent).join(&id)).unwrap();
        fs::remove_dir_all(house.jail(&id)).unwrap();
    }
    fs::remove_dir(cgroups.join(&parent)).unwrap();
    assert_eq!(found(&house, &cgroups, &parent), before);
    assert_eq!(
        fs::read_dir(house.base().join(NAME)).unwrap().count(),
        0,
        "jails"
    );
    assert_eq!(fs::read_dir(house.path()).unwrap().count(), 2, "the house");
    println!(
        "{cycles} machines in {:.1} s",
        begin.elapsed().as_secs_f64()
    );
}

/// The host finds what is left behind.
#[test]
fn what_is_left_behind_is_found() {
    let Some(house) = House::new() else { return };
    let Some(cgroups) = mounted("1").or_else(|| mounted("2")) else {
        eprintln!("SKIPPED: no cgroups with a pids controller");
        return;
    };
    let parent = format!("vmm-jailer-test-left-{}", std::process::id());
    let look = || found(&house, &cgroups, &parent);
    let before = look();
    assert_eq!(look(), before);
    fs::create_dir(cgroups.join(&parent)).unwrap();
    assert_ne!(look(), before);
    fs::remove_dir(cgroups.join(&parent)).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(house.path().join("s")).unwrap();
    assert_ne!(look(), before);
    drop(socket);
    let mut process = Command::new("sleep");
    std::os::unix::process::CommandExt::uid(&mut process, UID);
    let mut process = process.arg("60").spawn().unwrap();
    assert_ne!(look(), before);
    process.kill().unwrap();
    process.wait().unwrap();
    assert_eq!(look(), before);
}
