//! The sandbox around VMs that are processes, from outside: who they are, what they have given up, and that everything
//! works nevertheless. What does not work from inside, jail/tests tries.

#![allow(clippy::unwrap_used)]
#![cfg(target_arch = "x86_64")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::trial::{COUNT, Spawned, Trial};
use common::{Ended, RESET, binary, finish, kernel, print, signal, vmm};

/// A user that nobody is, and a group with rights on /dev/kvm alone.
const USER: u32 = 61_234;
const GROUP: u32 = 61_235;

/// Whether the test may become another user, and there are user namespaces to be had.
fn is_root() -> bool {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        eprintln!("SKIPPED: only root becomes another user");
    }
    root
}

/// A folder for a user, with the VMM and a /dev of its own, in which a group may use /dev/kvm.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .unwrap();
        let home = Self(folder);
        fs::copy(binary(), home.path("vmm")).unwrap();
        let own = home.path("own");
        fs::create_dir(&own).unwrap();
        std::os::unix::fs::chown(&own, Some(USER), Some(USER)).unwrap();
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn own(&self, name: &str) -> String {
        self.path("own").join(name).display().to_string()
    }

    /// A file of the user's.
    fn write(&self, name: &str, content: &[u8]) -> String {
        let path = self.own(name);
        fs::write(&path, content).unwrap();
        std::os::unix::fs::chown(&path, Some(USER), Some(USER)).unwrap();
        path
    }

    /// The VMM as that user.
    fn vmm(&self, arguments: &[&str]) -> Command {
        self.vmm_after("true", arguments)
    }

    /// The same, after a command of root's.
    fn vmm_after(&self, before: &str, arguments: &[&str]) -> Command {
        let script = format!(
            "mount -t tmpfs -o mode=755 tmpfs /dev && mknod -m 666 /dev/null c 1 3 && mkdir /dev/net && \
             mknod -m 660 /dev/kvm c 10 232 && chgrp {GROUP} /dev/kvm && {before} && \
             exec setpriv --reuid={USER} --regid={USER} --groups={GROUP} {} \"$@\"",
            self.path("vmm").display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh"]);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.current_dir(self.path("own"));
        command
    }

    fn ctl(&self, arguments: &[&str]) -> Ended {
        let control = self.own("control");
        let all = [&["ctl", &control], arguments].concat();
        finish(self.vmm(&all).spawn().unwrap())
    }

    fn said(&self, arguments: &[&str]) -> String {
        let ended = self.ctl(arguments);
        assert_eq!(ended.status.code(), Some(0), "{arguments:?}: {ended:?}");
        ended.stdout
    }

    /// Starts a VM and waits until its guest has printed something to `file`.
    fn start(&self, arguments: &[&str], file: &str) -> Spawned {
        let mut child = self.vmm(arguments).spawn().unwrap();
        while fs::read(self.own(file)).unwrap_or_default().is_empty() {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{status:?} {:?}", finish(child));
            }
            std::thread::yield_now();
        }
        Spawned::new(child)
    }
}

/// The fields of a status file in /proc, of each thread of a process.
fn statuses(process: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let statuses = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")));
    statuses.map(Result::unwrap).collect()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
}

/// What is to be seen of a VM in the full sandbox.
fn check_is_full(process: u32) {
    let statuses = statuses(process);
    assert!(statuses.len() > 2, "{statuses:?}");
    for status in &statuses {
        for (name, value) in [
            ("Seccomp:", "2"),
            ("NoNewPrivs:", "1"),
            ("CapEff:", "0000000000000000"),
            ("CapPrm:", "0000000000000000"),
            ("CapBnd:", "0000000000000000"),
        ] {
            assert_eq!(field(status, name), value, "{status}");
        }
    }
    let place = |name: &str| PathBuf::from(format!("/proc/{process}/{name}"));
    for kind in ["user", "mnt", "net", "ipc", "uts"] {
        let own = fs::read_link(place(&format!("ns/{kind}"))).unwrap();
        let ours = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(own, ours, "{kind}");
    }
    // Without a network, and without a directory.
    let devices = fs::read_to_string(place("net/dev")).unwrap();
    assert_eq!(devices.lines().count(), 3, "{devices}");
    for entry in fs::read_dir(place("fd")).unwrap() {
        let kind = fs::metadata(entry.unwrap().path());
        assert!(kind.is_ok_and(|kind| !kind.is_dir()));
    }
    assert!(!place("root/etc").exists() && !place("root/proc/self").exists());
}

#[test]
#[cfg(all(
    feature = "control",
    feature = "snapshot",
    feature = "virtio-balloon",
    feature = "virtio-blk",
    feature = "virtio-console",
    feature = "virtio-vsock"
))]
fn an_ordinary_user_has_all_of_it_with_every_device_and_command() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    let image = kernel(COUNT);
    let image = home.write("kernel", &fs::read(image.path()).unwrap());
    let disk = home.write("disk", &[0; 4096]);
    let other = home.write("other", &[0; 8192]);
    let options = [
        "--sandbox=strict".to_owned(),
        format!("--kernel={image}"),
        format!("--blk={disk}"),
        "--balloon".to_owned(),
        "--console=null".to_owned(),
        // From where it is: the sandbox knows from where that is.
        "--vsock=cid=3,path=vsock".to_owned(),
        format!("--serial=file={}", home.own("serial")),
        "--control=control".to_owned(),
        "--vcpus=2".to_owned(),
    ];
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let vm = home.start(&options, "serial");
    check_is_full(vm.child().id());
    assert!(home.said(&["status"]).contains("sandbox   full"));
    for command in [
        &["pause"][..],
        &["registers"],
        &["resume"],
        &["metrics"],
        &["device", "blk0", "file", &other],
        &["device", "blk0", "limits", "bw=1M"],
        &["device", "balloon0", "target", "128"],
        &["reset"],
    ] {
        home.said(command);
    }
    while !home.said(&["status"]).contains("restarts  1") {
        std::thread::yield_now();
    }
    let saved = home.own("saved");
    home.said(&["snapshot", &saved, "--diff"]);
    home.said(&["snapshot", &saved, "--diff"]);
    home.said(&["stop"]);
    let ended = vm.finish();
    assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(0), ""));
    for socket in ["control", "vsock"] {
        assert!(!Path::new(&home.own(socket)).exists(), "{socket} stays");
    }
    let restored = format!("--serial=file={}", home.own("restored"));
    let restore = [
        "restore",
        &saved,
        "--sandbox=strict",
        "--control=control",
        &restored,
    ];
    let vm = home.start(&restore, "restored");
    check_is_full(vm.child().id());
    home.said(&["snapshot", &saved]);
    home.said(&["stop"]);
    let ended = vm.finish();
    assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(0), ""));
}

/// How the files of a folder are open in a process: their names, and whether each opening has direct I/O, sorted.
#[cfg(all(feature = "control", feature = "snapshot", feature = "virtio-blk"))]
fn openings(process: u32, folder: &Path) -> Vec<(String, bool)> {
    let place = format!("/proc/{process}");
    let entries = fs::read_dir(format!("{place}/fd")).unwrap();
    let mut openings: Vec<_> = entries
        .filter_map(|entry| {
            let number = entry.unwrap().file_name().into_string().unwrap();
            let path = fs::read_link(format!("{place}/fd/{number}")).ok()?;
            let name = path.strip_prefix(folder).ok()?.to_str()?;
            // It was made without a name, and got one later.
            let name = if name.starts_with('#') { "copy" } else { name };
            let info = fs::read_to_string(format!("{place}/fdinfo/{number}")).ok()?;
            let flags = u32::from_str_radix(field(&info, "flags:"), 8).unwrap();
            let direct = flags & libc::O_DIRECT.cast_unsigned() != 0;
            Some((name.to_owned(), direct))
        })
        .collect();
    openings.sort();
    openings
}

#[test]
#[cfg(all(feature = "control", feature = "snapshot", feature = "virtio-blk"))]
fn a_disk_keeps_direct_io_when_it_gets_another_file_and_in_a_fork() {
    let trial = Trial::new();
    let folder = fs::canonicalize(trial.path("")).unwrap();
    let image = kernel(COUNT);
    let kernel = format!("--kernel={}", image.path().display());
    for name in ["disk", "new", "other", "read", "for-fork"] {
        fs::write(trial.path(name), [0; 8192]).unwrap();
    }
    let disk = |name: &str, more: &str| format!("--blk=path={},direct{more}", trial.path(name));
    let options = [
        &*kernel,
        "--sandbox=strict",
        &disk("disk", ""),
        &disk("other", ""),
        &disk("read", ",ro"),
    ];
    let vm = trial.spawn(0, &options);
    trial.wait(0);
    trial.said(&["device", "blk0", "file", &trial.path("new")]);
    let twice = |name: &str| [(name.to_owned(), false), (name.to_owned(), true)];
    let disks = |process| {
        let mut openings = openings(process, &folder);
        openings.retain(|(name, _)| !name.starts_with("output") && !name.contains("control"));
        openings
    };
    let expected = [twice("new"), twice("other"), twice("read")].concat();
    assert_eq!(disks(vm.child().id()), expected);
    let said = trial.said(&[
        "fork",
        "--json",
        &format!("--control={}", trial.path("control-of-fork")),
        &format!("--blk=id=blk0,path={}", trial.path("for-fork")),
        &format!("--blk=id=blk1,copy={}", trial.path("copy")),
    ]);
    let forked: serde_json::Value = serde_json::from_str(&said).unwrap();
    let fork = u32::try_from(forked["pid"].as_u64().unwrap()).unwrap();
    let of_fork = disks(fork);
    let ended = finish(
        vmm(&["ctl", &trial.path("control-of-fork"), "stop"])
            .spawn()
            .unwrap(),
    );
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let expected = [twice("copy"), twice("for-fork"), twice("read")].concat();
    assert_eq!(of_fork, expected);
    trial.said(&["stop"]);
    let ended = vm.finish();
    assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(0), ""));
}

#[test]
fn without_user_namespaces_there_are_landlock_and_filters() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    let code = [print("up\n"), RESET.to_vec()].concat();
    let image = home.write("kernel", &fs::read(kernel(&code).path()).unwrap());
    let image = format!("--kernel={image}");
    // In a user namespace of its own, whose limit is none.
    let none = "echo 0 > /proc/sys/user/max_user_namespaces";
    let run = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        let script = format!("{none} && exec \"$@\"");
        command.args(["--user", "--map-root-user", "sh", "-c", &script, "sh"]);
        command.arg(binary()).args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        finish(command.spawn().unwrap())
    };
    let ended = run(&[&image, "--log-level=debug"]);
    assert_eq!(
        (ended.status.code(), &ended.stdout[..]),
        (Some(0), "up\n"),
        "{ended:?}"
    );
    assert!(
        ended
            .stderr
            .contains("sandbox: filters; without user-namespace: "),
        "{ended:?}"
    );
    let plan = run(&["plan", &image]);
    assert!(
        plan.stdout
            .contains("\nsandbox: filters\n  without user-namespace: "),
        "{plan:?}"
    );
    assert!(plan.stdout.contains("user.max_user_namespaces"), "{plan:?}");
    let ended = run(&[&image, "--sandbox=strict"]);
    assert_eq!(
        (ended.status.code(), &ended.stdout[..]),
        (Some(2), ""),
        "{ended:?}"
    );
    assert!(
        ended.stderr.contains("the sandbox is incomplete: filters"),
        "{ended:?}"
    );
    assert!(
        ended.stderr.contains("cure: use --sandbox=auto"),
        "{ended:?}"
    );
}

#[test]
fn root_becomes_the_user_that_it_is_told_of() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    let code = [print("up\n"), vec![0xeb, 0xfe]].concat();
    let image = kernel(&code);
    let serial = home.own("serial");
    let image = format!("--kernel={}", image.path().display());
    let user = [format!("--uid={USER}"), format!("--gid={GROUP}")];
    let serial = format!("--serial=file={serial}");
    let (vsock, control) = (home.own("vsock"), home.own("control"));
    let sockets = [
        format!("--vsock=cid=3,path={vsock}"),
        format!("--control={control}"),
    ];
    for (mode, filters) in [("strict", "2"), ("off", "0")] {
        let mode = format!("--sandbox={mode}");
        let arguments = [&*image, &serial, &user[0], &user[1], &mode];
        let more = [&*sockets[0], &sockets[1], "--shutdown-timeout=0"];
        let child = vmm(&[&arguments[..], &more].concat()).spawn();
        let vm = Spawned::new(child.unwrap());
        while fs::read(home.own("serial")).unwrap_or_default() != b"up\n" {
            std::thread::yield_now();
        }
        for socket in [&vsock, &control] {
            let found = fs::symlink_metadata(socket).unwrap();
            assert_eq!((found.uid(), found.gid()), (USER, GROUP), "{socket}");
        }
        for status in statuses(vm.child().id()) {
            for (name, id) in [("Uid:", USER), ("Gid:", GROUP)] {
                let ids = field(&status, name).split_whitespace();
                assert!(
                    ids.map(|id| id.parse::<u32>().unwrap()).eq([id; 4]),
                    "{status}"
                );
            }
            assert_eq!(field(&status, "Groups:"), "", "{status}");
            assert_eq!(field(&status, "Seccomp:"), filters, "{status}");
        }
        signal(vm.child(), "TERM");
        let ended = vm.finish();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        fs::remove_file(home.own("serial")).unwrap();
    }
    let ended = finish(home.vmm(&["--uid=7", "--gid=7"]).spawn().unwrap());
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(
        ended.stderr.contains("only root becomes another user"),
        "{ended:?}"
    );
}

/// The starter of a program may hand on what it has open, without wanting to.
#[test]
#[cfg(feature = "virtio-blk")]
fn what_the_program_was_started_with_and_nobody_named_is_closed() {
    let trial = Trial::new();
    let disk = trial.path("disk");
    fs::write(&disk, [0; 4096]).unwrap();
    let code = [print("up\n"), vec![0xeb, 0xfe]].concat();
    let image = kernel(&code);
    let (image, serial) = (image.path().display(), trial.path("serial"));
    let options = [
        format!("--kernel={image}"),
        format!("--serial=file={serial}"),
        "--blk=/dev/fd/7".to_owned(),
        "--shutdown-timeout=0".to_owned(),
    ];
    let start = || {
        let mut starter = Command::new("sh");
        // Shells know descriptors of one digit.
        let script = "exec \"$@\" 5</etc/passwd 7<>\"$DISK\" 9</etc";
        starter.args(["-c", script, "sh"]).env("DISK", &disk);
        starter.arg(binary()).args(&options).stdin(Stdio::null());
        starter.stdout(Stdio::piped()).stderr(Stdio::piped());
        let vm = Spawned::new(starter.spawn().unwrap());
        while fs::read(&serial).unwrap_or_default() != b"up\n" {
            std::thread::yield_now();
        }
        vm
    };
    let vm = start();
    let open = fs::read_dir(format!("/proc/{}/fd", vm.child().id())).unwrap();
    let open: Vec<_> = open
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap())
        .collect();
    assert!(open.contains(&PathBuf::from(&disk)), "{open:?}");
    for closed in ["/etc/passwd", "/etc"] {
        assert!(!open.contains(&PathBuf::from(closed)), "{open:?}");
    }
    signal(vm.child(), "TERM");
    let ended = vm.finish();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("sandbox"), "{ended:?}");
}

#[test]
fn what_is_said_of_a_sandbox_has_to_make_sense() {
    common::refused(&["--sandbox=some"], &["--sandbox"]);
    common::refused(
        &["--uid=7"],
        &["--uid=7: a user and a group belong together"],
    );
    common::refused(
        &["--cgroup=/nowhere"],
        &["cannot open the cgroup /nowhere", "mkdir"],
    );
    common::refused(&["--cgroup=/tmp"], &["/tmp is no cgroup of version 2"]);
    common::refused(
        &["--cgroup=/tmp,cpu=none"],
        &["cpu=\"none\": it is a number from 1 on"],
    );
    // In a file, too: the number by which setuid(2) leaves everything as it is.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.toml");
    for (uid, gid, named) in [(u32::MAX, 5, "uid"), (5, u32::MAX, "gid")] {
        fs::write(&file, format!("uid = {uid}\ngid = {gid}\n")).unwrap();
        let said = format!("{named}=4294967295: it stands for no user and no group");
        common::refused(&[&format!("--config={}", file.display())], &[&said]);
    }
}

#[test]
#[cfg(all(feature = "control", feature = "snapshot"))]
fn a_socket_with_a_path_that_is_too_long_from_the_root_costs_the_root_only() {
    let trial = Trial::new();
    let folder = trial.path(&"long".repeat(25));
    fs::create_dir(&folder).unwrap();
    let image = kernel(COUNT);
    let kernel = format!("--kernel={}", image.path().display());
    let start = |mode: &str| {
        let mut command = vmm(&[&*kernel, "--control=c", "--serial=file=s", mode]);
        command.current_dir(&folder);
        command.spawn().unwrap()
    };
    let vm = Spawned::new(start("--sandbox=auto"));
    let output = Path::new(&folder).join("s");
    while fs::read(&output).unwrap_or_default().is_empty() {
        std::thread::yield_now();
    }
    let ctl = |command: &str| {
        let mut ctl = vmm(&["ctl", "c", command]);
        let ended = finish(ctl.current_dir(&folder).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        ended.stdout
    };
    let status = ctl("status");
    assert!(
        status.contains("without root: the path of the socket c is too long"),
        "{status}"
    );
    ctl("stop");
    assert_eq!(vm.finish().status.code(), Some(0));
    assert!(!Path::new(&folder).join("c").exists());
    let ended = finish(start("--sandbox=strict"));
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(
        ended
            .stderr
            .contains("without root: the path of the socket c"),
        "{ended:?}"
    );
}
