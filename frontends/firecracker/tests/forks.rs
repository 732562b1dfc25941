//! `PUT /snapshot/fork`: one machine becomes two, each a process with an API of its own.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::{Answer, Client, Process, deletes, wait_for};
use serde_json::{Value, json};

const FORK: &str = "/snapshot/fork";
const DELETE: &str = r#"{"action_type":"SendCtrlAltDel"}"#;

/// A fork, as a process that its parent has made.
struct Forked {
    pid: i32,
    socket: PathBuf,
}

impl Forked {
    fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        Client::connect(&self.socket).ask(method, path, body)
    }

    fn get(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, "");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    fn done(&self, method: &str, path: &str, body: &str) {
        let answer = self.ask(method, path, body);
        assert_eq!(answer.status, 204, "{method} {path} {body}: {answer:?}");
    }

    fn is_there(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.pid).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn fork_of(socket: &Path, body: &Value) -> Forked {
    let answer = Client::connect(socket).ask("PUT", FORK, &body.to_string());
    assert_eq!(answer.status, 200, "{body}: {answer:?}");
    let pid = answer.json()["pid"].as_i64().unwrap();
    Forked {
        pid: pid.try_into().unwrap(),
        socket: socket.with_file_name(body["api_sock"].as_str().unwrap()),
    }
}

fn printed(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Has Delete typed, and waits until there is more than before.
fn types(ask: impl FnOnce(), printed: impl Fn() -> String) -> String {
    let before = printed().len();
    ask();
    wait_for("a letter", || (printed().len() > before).then_some(()));
    // It may be typed and let go.
    std::thread::sleep(Duration::from_millis(20));
    printed()
}

/// Letters of the alphabet without a gap.
fn is_alphabet(text: &str) -> bool {
    text.bytes()
        .zip(text.bytes().skip(1))
        .all(|(one, next)| next == one + 1)
}

#[test]
fn a_fork_goes_on_from_the_same_moment_with_what_is_its_own() {
    let parent = Process::start(&deletes(), &["--id", "one", "--log-path", "log"]);
    fs::write(parent.path("disk2"), [7; 4096]).unwrap();
    for (id, read_only) in [("root", false), ("data", true), ("more", false)] {
        let path = if id == "more" { "disk2" } else { "disk" };
        let body = json!({
            "drive_id": id, "is_root_device": id == "root", "path_on_host": path, "is_read_only": read_only,
        });
        parent.put(&format!("/drives/{id}"), &body.to_string());
    }
    parent.put("/vsock", r#"{"guest_cid":3,"uds_path":"v"}"#);
    parent.put("/balloon", r#"{"amount_mib":1,"deflate_on_oom":true}"#);
    parent.put("/entropy", "{}");
    parent.put("/metrics", r#"{"metrics_path":"metrics"}"#);
    parent.boot();
    parent.wait_for("up\n");
    let letters = types(|| parent.put("/actions", DELETE), || parent.printed());
    fs::copy(parent.path("disk2"), parent.path("disk3")).unwrap();
    let fork = fork_of(
        &parent.path("api"),
        &json!({
            "api_sock": "api2",
            "id": "two",
            "resume_vm": true,
            "drive_copies": [{ "drive_id": "root", "path_on_host": "copy" }],
            "drive_overrides": [{ "drive_id": "more", "path_on_host": "disk3" }],
            "vsock_override": { "uds_path": "v2" },
            "serial_out_path": "serial2",
            "metrics_path": "metrics2",
        }),
    );
    assert_eq!(fs::read(parent.path("copy")).unwrap(), [0; 4096]);
    for (info, id) in [(parent.get("/"), "one"), (fork.get("/"), "two")] {
        assert_eq!(info["state"], "Running");
        assert_eq!(info["id"], id);
    }
    let config = fork.get("/vm/config");
    let paths = config["drives"].as_array().unwrap().iter();
    let paths: Vec<_> = paths.map(|drive| &drive["path_on_host"]).collect();
    assert_eq!(paths, ["copy", "disk", "disk3"]);
    assert_eq!(config["vsock"]["uds_path"], "v2");
    // Both guests go on with the next letter.
    let serial = parent.path("serial2");
    let more = types(|| fork.done("PUT", "/actions", DELETE), || printed(&serial));
    let own = types(|| parent.put("/actions", DELETE), || parent.printed());
    let all = own.strip_prefix("up\n").unwrap();
    assert!(is_alphabet(all), "{own}");
    assert_eq!(own.strip_prefix(&*letters), Some(&*more));
    // The API of each is of its own.
    fork.done("PATCH", "/vm", r#"{"state":"Paused"}"#);
    assert_eq!(parent.get("/")["state"], "Running");
    fork.done("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    fork.done("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#);
    parent.put("/actions", r#"{"action_type":"FlushMetrics"}"#);
    for name in ["metrics", "metrics2"] {
        let lines = printed(&parent.path(name));
        let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        assert!(last["vcpu"]["exit_io_in"].as_u64() > Some(0), "{name}");
    }
    // It is forked in its turn, and outlives its parent.
    let third = fork_of(
        &fork.socket,
        &json!({
            "api_sock": "api3",
            "drive_copies": [
                { "drive_id": "root", "path_on_host": "copy3" }, { "drive_id": "more", "path_on_host": "more3" },
            ],
            "vsock_override": { "uds_path": "v3" },
            "serial_out_path": "serial3",
        }),
    );
    assert_eq!(fs::read(parent.path("more3")).unwrap(), [7; 4096]);
    assert_eq!(third.get("/")["state"], "Paused");
    assert_eq!(third.get("/")["id"], "two");
    let log = printed(&parent.path("log"));
    assert!(log.contains("[one:") && log.contains("[two:"), "{log}");
    let _folder = Arc::clone(&parent.folder);
    drop(parent);
    third.done("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    let serial = third.socket.with_file_name("serial3");
    let last = types(
        || third.done("PUT", "/actions", DELETE),
        || printed(&serial),
    );
    let whole = format!("{}{more}{last}", letters.strip_prefix("up\n").unwrap());
    assert!(is_alphabet(&whole), "{whole}");
}

#[test]
fn a_fork_can_be_saved_and_ends_as_any_process() {
    let parent = Process::start(&common::keyboard(), &[]);
    parent.boot();
    parent.wait_for("up\n");
    parent.patch("/vm", r#"{"state":"Paused"}"#);
    let fork = fork_of(&parent.path("api"), &json!({ "api_sock": "api2" }));
    assert_eq!(parent.get("/")["state"], "Paused");
    fork.done("PUT", common::letters::CREATE, common::letters::FULL);
    fork.done("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    fork.done("PUT", "/actions", DELETE);
    wait_for("the fork's end", || (!fork.is_there()).then_some(()));
    // Its parent goes on, and what it has saved does too.
    assert_eq!(parent.get("/")["state"], "Paused");
    parent.patch("/vm", r#"{"state":"Resumed"}"#);
    let restored = parent.beside("api4", &[]);
    restored.put(common::letters::LOAD, common::letters::FROM_FILE);
    for process in [restored, parent] {
        process.put("/actions", DELETE);
        assert_eq!(process.end().status.code(), Some(0));
    }
}

#[test]
fn what_a_fork_lacks_is_told_and_nothing_is_left_behind() {
    let process = Process::start(&common::busy(), &[]);
    let said = process.refused("PUT", FORK, r#"{"api_sock":"api2"}"#);
    assert!(said.contains("not supported before starting"), "{said}");
    process.put(
        "/drives/root",
        r#"{"drive_id":"root","is_root_device":true,"path_on_host":"disk","is_read_only":false}"#,
    );
    process.put("/vsock", r#"{"guest_cid":3,"uds_path":"v"}"#);
    process.boot();
    process.wait_for("up\n");
    fs::write(process.path("full"), "mine").unwrap();
    fs::write(process.path("short"), "mine").unwrap();
    fs::write(process.path("empty"), "").unwrap();
    let fifo = process.path("fifo");
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(rustix::fs::CWD, fifo, kind, mode, 0).unwrap();
    let names = || {
        let mut names: Vec<_> = fs::read_dir(process.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let before = names();
    let copy = json!([{ "drive_id": "root", "path_on_host": "copy" }]);
    let vsock = json!({ "uds_path": "v2" });
    let tap = json!([{ "iface_id": "x", "host_dev_name": "x" }]);
    let whole = |key: &str, value: Value| {
        let mut body = json!({ "api_sock": "api2", "drive_copies": copy, "vsock_override": vsock });
        body[key] = value;
        body
    };
    let other = |path: &str| json!([{ "drive_id": "root", "path_on_host": path }]);
    let lines = |serial: &str, metrics: &str| {
        let mut body = whole("api_sock", json!("api"));
        body["serial_out_path"] = json!(serial);
        body["metrics_path"] = json!(metrics);
        body
    };
    for (body, cause) in [
        (json!({}), "missing field `api_sock`"),
        (whole("api_socks", json!(1)), "unknown field `api_socks`"),
        (whole("api_sock", json!("api")), "api: "),
        (whole("api_sock", json!("nowhere/api")), "nowhere/api: "),
        (whole("id", json!("a_b")), "Invalid char (_)"),
        (
            whole("drive_copies", json!([])),
            "may write to the drive root",
        ),
        (whole("drive_copies", other("disk")), "disk: File exists"),
        (
            whole("drive_overrides", other("full")),
            "root is named twice",
        ),
        (
            json!({ "api_sock": "api2", "drive_overrides": other("short"), "vsock_override": vsock }),
            "Fork error: ",
        ),
        (
            whole(
                "drive_copies",
                json!([{ "drive_id": "x", "path_on_host": "y" }]),
            ),
            "Unknown block device: x",
        ),
        (
            whole("vsock_override", json!(null)),
            "a socket of the fork's own",
        ),
        (
            whole("vsock_override", json!({ "uds_path": "v" })),
            "vsock_override: ",
        ),
        (whole("network_overrides", tap), "Unknown Network Device: x"),
        (
            whole("serial_out_path", json!("full")),
            "serial_out_path: full is there and not empty",
        ),
        (
            whole("metrics_path", json!("full")),
            "metrics_path: full is there and not empty",
        ),
        // The socket comes last.
        (lines("new", "newer"), "api: "),
        (lines("empty", "fifo"), "api: "),
    ] {
        let said = process.refused("PUT", FORK, &body.to_string());
        assert!(said.contains(cause), "{body}: {said}");
        assert_eq!(names(), before, "{body}: {said}");
    }
    assert_eq!(printed(&process.path("full")), "mine");
    assert_eq!(process.get("/")["state"], "Running");
    // And then it is right.
    let mut body = lines("empty", "fifo");
    body["api_sock"] = json!("api2");
    body["resume_vm"] = json!(true);
    let fork = fork_of(&process.path("api"), &body);
    assert_eq!(fork.get("/")["state"], "Running");
}

/// Disks take no lock here.
#[test]
fn a_file_that_a_guest_writes_to_is_one_disk_of_one_guest() {
    let process = Process::start(&common::busy(), &[]);
    for file in ["disk2", "disk3", "disk4", "disk5"] {
        fs::write(process.path(file), [0; 4096]).unwrap();
    }
    fs::hard_link(process.path("disk"), process.path("linked")).unwrap();
    std::os::unix::fs::symlink("disk3", process.path("symlink")).unwrap();
    for (id, path, read_only) in [
        ("root", "disk", false),
        ("more", "disk2", false),
        ("data", "disk3", true),
    ] {
        let body = json!({
            "drive_id": id, "is_root_device": id == "root", "path_on_host": path, "is_read_only": read_only,
        });
        process.put(&format!("/drives/{id}"), &body.to_string());
    }
    process.boot();
    process.wait_for("up\n");
    let with = |root: &str, more: &str| {
        json!({
            "api_sock": "api2",
            "drive_overrides": [
                { "drive_id": "root", "path_on_host": root }, { "drive_id": "more", "path_on_host": more },
            ],
        })
    };
    for (root, more, cause) in [
        ("disk", "disk4", "in use as the VM's disk"),
        ("linked", "disk4", "in use as the VM's disk"),
        ("disk2", "disk4", "in use as the VM's disk"),
        ("symlink", "disk4", "in use as the VM's disk"),
        ("disk4", "disk4", "two disks of the fork"),
    ] {
        let body = with(root, more).to_string();
        let said = process.refused("PUT", FORK, &body);
        assert!(said.contains(cause), "{body}: {said}");
        assert!(said.contains(&format!("{root} is to be")), "{body}: {said}");
        assert!(!process.path("api2").exists());
    }
    let fork = fork_of(&process.path("api"), &with("disk4", "disk5"));
    assert_eq!(fork.get("/")["state"], "Paused");
    // And so it is with what the fork has, in its turn.
    let body =
        json!({ "api_sock": "api3", "drive_overrides": with("disk4", "disk2")["drive_overrides"] });
    let answer = fork.ask("PUT", FORK, &body.to_string());
    assert_eq!(answer.status, 400, "{answer:?}");
    let said = answer.json().to_string();
    assert!(said.contains("in use as the VM's disk"), "{said}");
}

/// The machine waits for the fork, and the thread of the API must not wait for the machine meanwhile.
#[test]
fn other_clients_wait_while_a_fork_is_on_its_way() {
    let process = Process::start(&common::busy(), &[]);
    process.put("/metrics", r#"{"metrics_path":"metrics"}"#);
    process.boot();
    process.wait_for("up\n");
    let mut clients: Vec<_> = (0..8).map(|_| process.client()).collect();
    for round in 0..10 {
        let mut forks = Vec::new();
        for (number, client) in clients.iter_mut().enumerate() {
            let request = |method: &str, path: &str, body: &str| {
                let length = body.len();
                format!("{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}")
            };
            let text = match number {
                2 | 5 => {
                    let socket = format!("api-{round}-{number}");
                    forks.push(socket.clone());
                    request("PUT", FORK, &json!({ "api_sock": socket }).to_string())
                }
                _ => {
                    request("PATCH", "/vm", r#"{"state":"Resumed"}"#)
                        + &request("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#)
                }
            };
            client.send(text.as_bytes());
        }
        for (number, client) in clients.iter_mut().enumerate() {
            let answers = if matches!(number, 2 | 5) { 1 } else { 2 };
            for _ in 0..answers {
                let answer = client.answer().unwrap();
                assert!(answer.status < 300, "{answer:?}");
                if answers == 1 {
                    let pid = answer.json()["pid"].as_i64().unwrap();
                    drop(Forked {
                        pid: pid.try_into().unwrap(),
                        socket: PathBuf::new(),
                    });
                }
            }
        }
    }
}

#[test]
fn a_network_device_of_a_fork_has_a_tap_of_its_own() {
    let folder = common::folder(&deletes());
    let arguments = ["--api-sock", "api"];
    let Some(command) = common::program_with_network(folder.path(), &arguments) else {
        eprintln!("SKIPPED: no network namespace, or no /dev/net/tun");
        return;
    };
    let process = Process::of(folder, command);
    wait_for("the socket", || process.path("api").exists().then_some(()));
    process.put(
        "/network-interfaces/n",
        r#"{"iface_id":"n","host_dev_name":"tap0"}"#,
    );
    process.put(
        "/mmds/config",
        r#"{"network_interfaces":["n"],"version":"V2"}"#,
    );
    process.put("/mmds", r#"{"a":1}"#);
    process.boot();
    process.wait_for("up\n");
    let said = process.refused("PUT", FORK, r#"{"api_sock":"api2"}"#);
    assert!(said.contains("name one in network_overrides"), "{said}");
    let fork = fork_of(
        &process.path("api"),
        &json!({
            "api_sock": "api2", "network_overrides": [{ "iface_id": "n", "host_dev_name": "tap1" }],
        }),
    );
    let config = fork.get("/vm/config");
    assert_eq!(config["network-interfaces"][0]["host_dev_name"], "tap1");
    assert_eq!(config["mmds-config"]["version"], "V2");
    // The metadata are a copy.
    assert_eq!(fork.get("/mmds"), json!({ "a": 1 }));
    fork.done("PATCH", "/mmds", r#"{"a":2}"#);
    assert_eq!(process.get("/mmds"), json!({ "a": 1 }));
}
