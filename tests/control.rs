//! The control socket and `ctl`, as processes.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Ended, finish, refused, vmm};
use serde_json::Value;

/// Prints a line, then reads COM1's line status for ever.
fn busy() -> Vec<u8> {
    let mut code = common::print("up\n");
    code.extend([0x66, 0xba, 0xfd, 0x03, 0xec, 0xeb, 0xfd]);
    code
}

struct Running {
    child: Child,
    socket: PathBuf,
    _folder: tempfile::TempDir,
    _kernel: tempfile::NamedTempFile,
}

/// A VM that has printed its line.
fn start(arguments: &[&str]) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let kernel = common::kernel(&busy());
    let socket = folder.path().join("control");
    let options = [
        common::option("kernel", kernel.path()),
        common::option("control", &socket),
    ];
    let all: Vec<_> = options
        .iter()
        .map(String::as_str)
        .chain(arguments.iter().copied())
        .collect();
    let mut child = vmm(&all).stdout(Stdio::piped()).spawn().unwrap();
    common::read_until(child.stdout.as_mut().unwrap(), "up\n");
    Running {
        child,
        socket,
        _folder: folder,
        _kernel: kernel,
    }
}

fn ctl(socket: &Path, arguments: &[&str]) -> Ended {
    let all = [&["ctl", socket.to_str().unwrap()], arguments].concat();
    finish(vmm(&all).spawn().unwrap())
}

fn said(socket: &Path, arguments: &[&str]) -> String {
    let ended = ctl(socket, arguments);
    assert_eq!(ended.status.code(), Some(0), "{arguments:?}: {ended:?}");
    ended.stdout
}

fn json(socket: &Path, arguments: &[&str]) -> Value {
    let text = said(socket, &[arguments, &["--json"]].concat());
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_vm_is_asked_from_another_process() {
    let vm = start(&["--vcpus=2"]);
    let socket = &vm.socket;
    assert!(said(socket, &["status"]).starts_with("state     running\nvCPUs     2\n"));
    assert_eq!(said(socket, &["pause"]), "paused\n");
    let reads = |metrics: Value| metrics["exits"]["port_reads"].as_u64().unwrap();
    let before = reads(json(socket, &["metrics"]));
    assert_eq!(json(socket, &["status"])["state"], "paused");
    assert_eq!(reads(json(socket, &["metrics"])), before);
    assert!(said(socket, &["registers"]).contains("\n\nvCPU 1\n"));
    assert_eq!(json(socket, &["registers"])["vcpus"][1]["id"], 1);
    assert_eq!(said(socket, &["resume"]), "running\n");
    while reads(json(socket, &["metrics"])) == before {
        std::thread::yield_now();
    }
    // What makes no sense now is refused, with status 1.
    assert_eq!(said(socket, &["pause"]), "paused\n");
    let ended = ctl(socket, &["reset"]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        ended
            .stderr
            .contains("reset is not possible while the machine is paused")
    );
    said(socket, &["stop"]);
    let ended = finish(vm.child);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(!socket.exists());
    let ended = ctl(socket, &["status"]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(
        ended.stderr.contains("cure: name the socket of a VM"),
        "{ended:?}"
    );
}

/// What a VM with a disk and a balloon that no driver uses makes of words, right and wrong.
#[cfg(all(
    feature = "virtio-blk",
    feature = "virtio-balloon",
    feature = "virtio-console"
))]
#[test]
fn devices_are_changed_from_another_process() {
    let disk = common::file(&[0; 4096]);
    let blk = format!("--blk={},id=root", disk.path().display());
    let balloon = "--balloon=target=192,free-page-hinting";
    let vm = start(&[&blk, balloon, "--console=null", "--rng=off"]);
    let socket = &vm.socket;
    let device = |words: &[&str]| ctl(socket, &[&["device"], words].concat());
    for state in ["resume", "pause"] {
        said(socket, &[state]);
        for (words, text) in [
            (
                &["root", "limits", "bw=10M", "iops=100"][..],
                "root: limits bw=10485760 iops=100\n",
            ),
            (&["root", "limits", "none"], "root: limits none\n"),
            (&["balloon0", "target", "128M"], "balloon0: target 128M\n"),
            (&["console0", "size", "132x50"], "console0: size 132x50\n"),
            (&["balloon0", "hinting", "hold"], "balloon0: hinting hold\n"),
            (
                &["balloon0", "hinting", "status"],
                "hinting                  asked for, when the guest has a driver for it\n\
                 released                 0 KiB\n",
            ),
            (&["balloon0", "hinting", "stop"], "balloon0: hinting stop\n"),
            (
                &["balloon0", "stats-interval", "5"],
                "balloon0: stats-interval 5\n",
            ),
            (
                &["balloon0", "statistics"],
                "asked for                131072 KiB\n\
                 given                    0 KiB\n\
                 statistics               none: no driver of the guest gives any\n",
            ),
        ] {
            let ended = device(words);
            assert_eq!(
                (ended.status.code(), &*ended.stdout),
                (Some(0), text),
                "{ended:?}"
            );
        }
        let answer = json(socket, &["device", "root", "adjust-limits", "iops=1"]);
        assert_eq!(answer["state"], json(socket, &["status"])["state"]);
        let answer = json(socket, &["device", "balloon0", "hinting", "status"]);
        assert_eq!(answer["hinting"]["state"], "idle");
        let answer = json(socket, &["device", "balloon0", "statistics"]);
        let asked = answer["statistics"]["asked_bytes"].as_u64();
        assert_eq!(asked, Some(128 << 20));
        // What the VM refuses.
        for (words, cause) in [
            (
                &["blk0", "limits", "none"][..],
                "there are root, console0, balloon0",
            ),
            (
                &["root", "target", "1M"],
                "root has no target: it is a device of the kind blk",
            ),
            (&["balloon0", "link", "up"], "balloon0 has no link"),
            (
                &["balloon0", "target", "1T"],
                "the guest has 256M of memory",
            ),
            (&["root", "statistics"], "root has no statistics"),
            (&["blk0", "statistics"], "there are root"),
            (
                &["console0", "hinting", "status"],
                "console0 has no hinting",
            ),
        ] {
            let ended = device(words);
            assert_eq!(ended.status.code(), Some(1), "{ended:?}");
            assert!(ended.stderr.contains(cause), "{ended:?}");
        }
        // What it is not asked for.
        for (words, cause) in [
            (&["root"][..], "Usage"),
            (&["root", "limits"], "LIMIT"),
            (&["root", "limits", "bw=fast"], "not a number"),
            (&["root", "limits", "bw=0"], "1 to 1024T"),
            (
                &["root", "limits", "speed=1"],
                "bw=, bw-burst=, bw-refill=, bw-once=, iops=, iops-burst=, iops-refill= and iops-once=",
            ),
            (&["root", "limits", "bw=1", "bw=2"], "bw is given twice"),
            (&["root", "limits", "bw-burst=1"], "give bw as well"),
            (&["root", "limits", "none", "bw=1"], "none"),
            (&["net0", "link", "sideways"], "up, down"),
            (&["balloon0", "target", "much"], "512M"),
            (&["balloon0", "target", "0"], "no memory"),
            (
                &["balloon0", "target", "-1"],
                "it is 1B to the guest's memory",
            ),
            (
                &["balloon0", "hinting", "more"],
                "start, hold, stop, status",
            ),
            (&["balloon0", "stats-interval", "86401"], "0 to 86400"),
            (&["console0", "size", "80"], "80x25"),
            (&["console0", "size", "0x25"], "80x25"),
            (&["console0", "size", "80x70000"], "80x25"),
        ] {
            let ended = device(words);
            assert_eq!(ended.status.code(), Some(2), "{words:?}: {ended:?}");
            assert!(ended.stderr.contains(cause), "{words:?}: {ended:?}");
        }
    }
    // A guest that starts again finds the same devices, and commands do too.
    said(socket, &["resume"]);
    said(socket, &["reset"]);
    while json(socket, &["status"])["restarts"] != 1 {
        std::thread::yield_now();
    }
    let status = json(socket, &["status"]);
    let devices = status["devices"].as_array().unwrap().iter();
    let ids: Vec<_> = devices
        .map(|device| device["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["root", "console0", "balloon0"]);
    // Whoever listens hears of a change.
    let mut listener = UnixStream::connect(socket).unwrap();
    listener
        .write_all(b"{\"subscribe\":[\"device-changed\"]}\n")
        .unwrap();
    let mut lines = BufReader::new(listener).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    next();
    assert_eq!(next()["ok"]["subscribed"], true);
    said(socket, &["device", "root", "limits", "bw=1M"]);
    let event = next();
    assert_eq!(
        (&event["device"], &event["change"]),
        (&"root".into(), &"limits bw=1048576".into())
    );
    // No driver: nothing was counted, and it is told all the same.
    let metrics = json(socket, &["metrics"]);
    let ids = metrics["devices"].as_array().unwrap().iter();
    let ids: Vec<_> = ids.map(|device| device["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["root", "console0", "balloon0"]);
    assert_eq!(metrics["devices"][0]["operations"]["read"]["requests"], 0);
    said(socket, &["stop"]);
    finish(vm.child);
}

#[test]
#[cfg(feature = "virtio-blk")]
fn a_disk_gets_another_file_which_the_client_opens() {
    let (old, new) = (common::file(&[1; 4096]), common::file(&[2; 8192]));
    let disk = common::option("blk", old.path());
    let vm = start(&[&disk]);
    let path = new.path().to_str().unwrap();
    let said = said(&vm.socket, &["device", "blk0", "file", path]);
    assert_eq!(said.trim(), format!("blk0: file {path}"));
    // The old one is free, the new one is not.
    let other = start(&[&disk]);
    let socket = vm.socket.to_str().unwrap();
    for (arguments, texts) in [
        (
            [
                "ctl",
                other.socket.to_str().unwrap(),
                "device",
                "blk0",
                "file",
                path,
            ],
            [
                "the file of blk0 cannot be changed",
                "in use as a disk already",
            ],
        ),
        (
            ["ctl", socket, "device", "rng0", "file", path],
            ["rng0 has no file", "kind rng"],
        ),
        (
            ["ctl", socket, "device", "blk0", "file", "/nowhere"],
            ["file=/nowhere", "cure:"],
        ),
    ] {
        let ended = finish(vmm(&arguments).spawn().unwrap());
        assert_ne!(ended.status.code(), Some(0), "{ended:?}");
        for text in texts {
            assert!(ended.stderr.contains(text), "{text}: {ended:?}");
        }
    }
    for vm in [vm, other] {
        self::said(&vm.socket, &["stop"]);
        finish(vm.child);
    }
}

#[test]
fn events_tell_the_story_of_a_vm() {
    let vm = start(&[]);
    let arguments = ["ctl", vm.socket.to_str().unwrap(), "events", "--json"];
    let mut listener = vmm(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut events = BufReader::new(listener.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&events.next().unwrap().unwrap()).unwrap() };
    // The first event is one that this test causes; it may come before the listener is there.
    let (done, socket) = (&AtomicBool::new(false), &vm.socket);
    let seen = std::thread::scope(|scope| {
        scope.spawn(move || {
            while !done.load(Ordering::SeqCst) {
                said(socket, &["pause"]);
                said(socket, &["resume"]);
            }
        });
        let seen = next();
        done.store(true, Ordering::SeqCst);
        seen
    });
    assert_eq!(seen["event"], "state");
    said(&vm.socket, &["reset"]);
    while next()["event"] != "restart" {}
    said(&vm.socket, &["shutdown", "--timeout=0"]);
    let last = loop {
        let event = next();
        if event["event"] == "ended" {
            break event;
        }
    };
    assert_eq!(last["failed"], false);
    assert_eq!(finish(vm.child).status.code(), Some(0));
    assert_eq!(finish(listener).status.code(), Some(0));
}

#[test]
fn a_socket_of_another_vm_is_left_alone_and_a_stale_one_replaced() {
    let mut vm = start(&[]);
    let option = common::option("control", &vm.socket);
    refused(
        &[&option],
        &["--control=", "another program listens there", "cure:"],
    );
    let plan = finish(vmm(&["plan", &option]).spawn().unwrap());
    assert_eq!(plan.status.code(), Some(0), "{plan:?}");
    let remark = format!("{option}: another program listens there");
    assert!(plan.stdout.contains(&remark), "{plan:?}");
    assert_eq!(json(&vm.socket, &["status"])["state"], "running");
    // Killed, it leaves its socket behind.
    vm.child.kill().unwrap();
    vm.child.wait().unwrap();
    assert!(vm.socket.exists());
    let plan = finish(vmm(&["plan", &option]).spawn().unwrap());
    assert_eq!(plan.status.code(), Some(0), "{plan:?}");
    let ended = finish(vmm(&[&option]).spawn().unwrap());
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(!vm.socket.exists());
    let file = common::file(b"precious");
    refused(
        &[&common::option("control", file.path())],
        &["which is no socket", "cure: name a path"],
    );
    assert_eq!(std::fs::read(file.path()).unwrap(), b"precious");
}

#[test]
fn metrics_have_the_text_format_of_prometheus() {
    let disk = common::file(&[0; 4096]);
    let blk = format!("--blk={},id=a-b_c", disk.path().display());
    let has_disks = cfg!(feature = "virtio-blk");
    let arguments: Vec<_> = has_disks.then_some(blk.as_str()).into_iter().collect();
    let vm = start(&arguments);
    let text = said(&vm.socket, &["metrics", "--prometheus"]);
    said(&vm.socket, &["stop"]);
    finish(vm.child);
    let mut families = std::collections::BTreeSet::new();
    for line in text.lines() {
        match line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
            ["#", "HELP", _, ..] => {}
            [
                "#",
                "TYPE",
                name,
                kind @ ("counter" | "gauge" | "histogram"),
            ] => {
                assert!(families.insert(name.to_owned()));
                if kind == "histogram" {
                    families
                        .extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")));
                }
            }
            [sample, value] => {
                let name = sample.split('{').next().unwrap();
                assert!(families.contains(name), "{name} has no type before it");
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
            _ => panic!("{line}"),
        }
    }
    assert!(families.contains("vmm_exits_total"));
    assert!(families.contains("vmm_vcpu_cpu_seconds_total"));
    let histogram =
        "vmm_device_request_seconds_bucket{id=\"a-b_c\",kind=\"blk\",operation=\"read\",";
    assert_eq!(text.contains(histogram), has_disks, "{text}");
    // A real parser, where there is one.
    let promtool = std::env::var_os("VMM_TEST_PROMTOOL").unwrap_or_else(|| "promtool".into());
    let promtool = std::process::Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .spawn();
    match promtool {
        Ok(mut child) => {
            child
                .stdin
                .take()
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
            assert!(child.wait().unwrap().success());
        }
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "no promtool: {error}");
            eprintln!("skipped: no promtool: {error}");
        }
    }
}

#[test]
fn a_paused_guest_hears_of_sigterm_and_who_is_asked_to_power_off_does_not_start_again() {
    let vm = start(&[]);
    assert_eq!(said(&vm.socket, &["pause"]), "paused\n");
    common::signal(&vm.child, "TERM");
    while json(&vm.socket, &["status"])["state"] == "paused" {
        std::thread::yield_now();
    }
    let ended = ctl(&vm.socket, &["reset"]);
    assert_eq!(ended.status.code(), Some(1));
    let text = "reset is not possible: the guest was asked to power off";
    assert!(ended.stderr.contains(text), "{ended:?}");
    said(&vm.socket, &["stop"]);
    assert_eq!(finish(vm.child).status.code(), Some(0));
}

#[test]
fn errors_are_json_where_answers_are() {
    let vm = start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let silent = std::os::unix::net::UnixListener::bind(path("silent")).unwrap();
    std::fs::write(path("file"), "").unwrap();
    let vm_says = path("vm");
    std::os::unix::fs::symlink(&vm.socket, &vm_says).unwrap();
    said(&vm.socket, &["pause"]);
    for (socket, words, status, kind, text) in [
        (
            "vm",
            &["reset"][..],
            1,
            "state",
            "reset is not possible while",
        ),
        (
            "vm",
            &["device", "x", "link", "up"],
            1,
            "device",
            "no device has the id",
        ),
        ("no", &["status"], 2, "usage", "No such file"),
        ("file", &["status"], 2, "usage", "it is no socket"),
        ("silent", &["status"], 1, "connection", "it says nothing"),
        ("vm", &["fly"], 2, "usage", "fly"),
        ("vm", &[], 2, "usage", "subcommand"),
        (
            "vm",
            &["shutdown", "--timeout=-1"],
            2,
            "usage",
            "it is 0 to",
        ),
        (
            "vm",
            &["device", "x", "limits", "bw=1", "bw=2"],
            2,
            "usage",
            "bw is given twice",
        ),
    ] {
        let plain = ctl(&path(socket), words);
        let ended = ctl(&path(socket), &[words, &["--json"]].concat());
        assert_eq!(ended.status.code(), Some(status), "{words:?}: {ended:?}");
        assert_eq!(plain.status.code(), Some(status), "{words:?}: {plain:?}");
        assert_eq!((&*ended.stderr, &*plain.stdout), ("", ""));
        let answer: Value = serde_json::from_str(&ended.stdout).unwrap();
        let error = answer["error"].as_object().unwrap();
        assert_eq!(error["kind"], kind, "{answer}");
        assert!(
            error["message"].as_str().unwrap().contains(text),
            "{answer}"
        );
        assert_eq!(error.contains_key("cure"), kind == "usage", "{answer}");
        assert_eq!(error.contains_key("state"), kind == "state", "{answer}");
    }
    drop(silent);
    said(&vm.socket, &["stop"]);
    finish(vm.child);
}

#[test]
fn what_is_no_control_socket_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let silent = folder.path().join("silent");
    let _listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    let ended = ctl(&silent, &["status"]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("it says nothing"), "{ended:?}");
    let ended = ctl(folder.path(), &["status"]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stderr.contains("it is no socket"), "{ended:?}");
    for path in [folder.path().join("no/socket"), "x".repeat(200).into()] {
        let option = common::option("control", &path);
        for arguments in [&[&*option][..], &["plan", &option]] {
            refused(arguments, &["--control=", "cure: name a"]);
        }
    }
}
