//! A machine from its configuration to its end, as a process that clients drive.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Process, busy, cpuid_bit, echo, program, short};
use std::io::Write;
use std::process::Stdio;

#[test]
fn a_machine_is_configured_started_paused_and_ends_with_its_guest() {
    let process = Process::start(&echo(), &["--id", "one"]);
    let info = process.get("/");
    assert_eq!(info["state"], "Not started");
    assert_eq!(info["id"], "one");
    assert_eq!(info["app_name"], "Firecracker");
    assert_eq!(info["vmm_version"], "1.16.0");
    assert_eq!(process.get("/version")["firecracker_version"], "1.16.0");
    let machine = process.get("/machine-config");
    assert_eq!(
        machine,
        serde_json::json!({
            "vcpu_count": 1, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false,
            "huge_pages": "None",
        })
    );
    process.put("/machine-config", r#"{"vcpu_count":2,"mem_size_mib":64}"#);
    let disk =
        r#"{"drive_id":"root","is_root_device":true,"path_on_host":"disk","is_read_only":true}"#;
    process.put("/drives/root", disk);
    process.boot();
    assert_eq!(process.get("/")["state"], "Running");
    // Both are what they were the second time, too.
    for _ in 0..2 {
        process.patch("/vm", r#"{"state":"Paused"}"#);
        assert_eq!(process.get("/")["state"], "Paused");
    }
    for _ in 0..2 {
        process.patch("/vm", r#"{"state":"Resumed"}"#);
        assert_eq!(process.get("/")["state"], "Running");
    }
    drop(process);
}

#[test]
fn the_guest_has_stdin_and_stdout_and_its_reset_is_status_0() {
    let folder = common::folder(&echo());
    let mut command = program(folder.path(), &["--api-sock", "api", "--log-path", "log"]);
    command.stdin(Stdio::piped());
    let mut process = Process::of(folder, command);
    common::wait_for("the socket", || process.path("api").exists().then_some(()));
    process.boot();
    // Ctrl-a is a byte as any other.
    process.stdin().write_all(b"a\x01xbq").unwrap();
    let api = process.path("api");
    common::wait_for("the echo", || {
        (process.printed() == "a\u{1}xbq").then_some(())
    });
    let folder = process.folder.path().to_owned();
    let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
    common::wait_for("the last line", || {
        log()
            .contains("Firecracker exiting successfully. exit_code=0")
            .then_some(())
    });
    let log = log();
    for line in [
        "Running Firecracker v1.16.0",
        "Listening on API socket (\"api\").",
        "API server started.",
        "The API server received a Put request on \"/actions\" with body \"{\\\"action_type\\\":\\\"InstanceStart\\\"}\".",
        "The request was executed successfully. Status code: 204 No Content.",
        "Vmm is stopping.",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    // It stays, as clients know it.
    assert!(api.exists());
    let ended = process.end();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

#[test]
fn a_crash_is_status_1() {
    // ud2 without an interrupt table.
    let process = Process::start(&[0x0f, 0x0b], &["--metrics-path", "metrics"]);
    let metrics = std::fs::File::open(process.path("metrics")).unwrap();
    process.boot();
    let ended = process.end();
    let lines = std::io::read_to_string(metrics).unwrap();
    assert!(lines.contains("\"failures\":1"), "{lines}");
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(
        ended.stdout.contains("exiting with error. exit_code=1"),
        "{ended:?}"
    );
    assert!(ended.stderr.contains("triple fault"), "{ended:?}");
}

#[test]
fn a_socket_that_is_there_is_an_error() {
    let folder = common::folder(&short());
    std::fs::write(folder.path().join("api"), "").unwrap();
    let ended = Process::spawn(folder, &["--api-sock", "api"]).end();
    assert_eq!(ended.status.code(), Some(1));
    let text = "Failed to open the API socket at: api. Check that it is not already used.";
    assert!(
        ended.stderr.contains(text) && ended.stdout.contains(text),
        "{ended:?}"
    );
}

#[test]
fn a_failed_start_is_an_answer_and_the_process_lives_on() {
    let process = Process::start(&short(), &[]);
    let start = r#"{"action_type":"InstanceStart"}"#;
    let said = process.refused("PUT", "/actions", start);
    assert_eq!(
        said,
        "Start microvm error: Cannot start microvm without kernel configuration."
    );
    // No kernel.
    std::fs::write(process.path("text"), "no kernel").unwrap();
    process.put("/boot-source", r#"{"kernel_image_path":"text"}"#);
    assert!(
        process
            .refused("PUT", "/actions", start)
            .starts_with("Start microvm error: ")
    );
    process.put(
        "/machine-config",
        r#"{"vcpu_count":1,"mem_size_mib":100000000}"#,
    );
    process.put("/boot-source", r#"{"kernel_image_path":"kernel"}"#);
    let said = process.refused("PUT", "/actions", start);
    let text =
        "Invalid Memory Configuration: Cannot create mmap region: Out of memory (os error 12)";
    assert!(said.contains(text), "{said}");
    process.put("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128}"#);
    process.put("/actions", start);
    let ended = process.end();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.guest().contains("hello\n"), "{ended:?}");
}

#[test]
fn every_phase_refuses_what_belongs_to_the_other() {
    let process = Process::start(&busy(), &[]);
    let before = "The requested operation is not supported before starting the microVM.";
    let after = "The requested operation is not supported after starting the microVM.";
    let late = [
        ("PATCH", "/vm", r#"{"state":"Paused"}"#),
        ("PATCH", "/drives/a", r#"{"drive_id":"a"}"#),
        ("PATCH", "/network-interfaces/a", r#"{"iface_id":"a"}"#),
        ("PATCH", "/balloon", r#"{"amount_mib":1}"#),
        ("GET", "/balloon/statistics", ""),
        ("PATCH", "/balloon/hinting/stop", ""),
        ("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#),
        ("PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#),
    ];
    for (method, path, body) in late {
        assert_eq!(
            process.refused(method, path, body),
            before,
            "{method} {path}"
        );
    }
    process.boot();
    for (path, body) in [
        ("/boot-source", r#"{"kernel_image_path":"kernel"}"#),
        ("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128}"#),
        ("/actions", r#"{"action_type":"InstanceStart"}"#),
        ("/logger", "{}"),
        ("/metrics", r#"{"metrics_path":"m"}"#),
        ("/serial", "{}"),
        ("/entropy", "{}"),
        ("/cpu-config", "{}"),
        ("/vsock", r#"{"guest_cid":3,"uds_path":"v"}"#),
        ("/balloon", r#"{"amount_mib":1,"deflate_on_oom":true}"#),
        ("/mmds/config", r#"{"network_interfaces":["a"]}"#),
    ] {
        assert_eq!(process.refused("PUT", path, body), after, "{path}");
    }
    let drive = r#"{"drive_id":"a","is_root_device":false,"path_on_host":"disk"}"#;
    assert_eq!(
        process.refused("PUT", "/drives/a", drive),
        "PCI is not enabled"
    );
    assert_eq!(
        process.refused("DELETE", "/drives/a", ""),
        "PCI is not enabled"
    );
    let said = process.refused("PUT", "/pmem/a", "{}");
    assert!(
        said.starts_with("The requested operation is not supported: "),
        "{said}"
    );
}

#[test]
fn more_devices_than_there_is_room_for_are_refused_at_the_start() {
    for (arguments, count, cause) in [
        (
            &[][..],
            16,
            "Could not allocate GSI: The requested resource is not available.",
        ),
        (
            &["--enable-pci"],
            32,
            "Could not find an available device slot on the PCI bus.",
        ),
    ] {
        let process = Process::start(&short(), arguments);
        process.put("/boot-source", r#"{"kernel_image_path":"kernel"}"#);
        for number in 0..count {
            let body = format!(
                r#"{{"drive_id":"d{number}","is_root_device":false,"path_on_host":"disk","is_read_only":true}}"#
            );
            process.put(&format!("/drives/d{number}"), &body);
        }
        let said = process.refused("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
        assert!(said.contains(cause), "{said}");
    }
    // As many as there is room for.
    for (arguments, count) in [(&[][..], 15), (&["--enable-pci"], 31)] {
        let process = Process::start(&short(), arguments);
        for number in 0..count {
            let body = format!(
                r#"{{"drive_id":"d{number}","is_root_device":false,"path_on_host":"disk","is_read_only":true}}"#
            );
            process.put(&format!("/drives/d{number}"), &body);
        }
        process.boot();
        assert_eq!(process.end().guest(), "hello\n");
    }
}

/// LAHF in long mode, which every processor with 64 bits has but the first.
#[test]
fn a_guest_finds_the_processor_features_of_a_template() {
    let template = |leaf: &str, bitmap: &str| {
        format!(
            r#"{{"cpuid_modifiers":[{{"leaf":"{leaf}","subleaf":"0x0","flags":0,"modifiers":[{{"register":"ecx","bitmap":"{bitmap}"}}]}}]}}"#
        )
    };
    let start = r#"{"action_type":"InstanceStart"}"#;
    for (bitmap, found) in [(None, "y"), (Some("0bx0"), "n"), (Some("0bx1"), "y")] {
        let process = Process::start(&cpuid_bit(0), &[]);
        if let Some(bitmap) = bitmap {
            process.put("/cpu-config", &template("0x80000001", bitmap));
        }
        process.boot();
        let ended = process.end();
        assert_eq!(ended.guest(), found, "{bitmap:?}");
    }
    // A leaf that no processor has; the next template is another start.
    let process = Process::start(&cpuid_bit(0), &[]);
    process.put("/boot-source", r#"{"kernel_image_path":"kernel"}"#);
    process.put("/cpu-config", &template("0x7fffffff", "0b0"));
    let said = process.refused("PUT", "/actions", start);
    assert!(
        said.contains("no such leaf") && said.contains("cpuid:0x7fffffff"),
        "{said}"
    );
    process.put("/cpu-config", "{}");
    process.put("/actions", start);
    assert_eq!(process.end().guest(), "y");
}

#[test]
fn what_is_named_again_replaces_what_it_was_before() {
    let process = Process::start(&short(), &[]);
    let drive = |id: &str, root: bool, path: &str| {
        let body =
            serde_json::json!({ "drive_id": id, "is_root_device": root, "path_on_host": path });
        (format!("/drives/{id}"), body.to_string())
    };
    for (id, root) in [("a", false), ("b", true), ("c", false), ("a", false)] {
        let (path, body) = drive(id, root, "disk");
        process.put(&path, &body);
    }
    let ids = || -> Vec<String> {
        let config = process.get("/vm/config");
        let drives = config["drives"].as_array().unwrap().iter();
        drives
            .map(|drive| drive["drive_id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids(), ["b", "a", "c"]);
    let (path, body) = drive("b", true, "nowhere");
    process.refused("PUT", &path, &body);
    assert_eq!(ids(), ["b", "a", "c"]);
    let (path, body) = drive("c", true, "disk");
    let said = process.refused("PUT", &path, &body);
    assert!(
        said.ends_with("A root block device already exists!"),
        "{said}"
    );
    // What was the root no longer is, so that another one may be.
    let (path, body) = drive("b", false, "disk");
    process.put(&path, &body);
    let (path, body) = drive("c", true, "disk");
    process.put(&path, &body);
    assert_eq!(ids()[0], "c");
    for path in ["v1", "v2", "v2"] {
        process.put(
            "/vsock",
            &format!(r#"{{"guest_cid":3,"uds_path":"{path}"}}"#),
        );
    }
    assert!(!process.path("v1").exists() && process.path("v2").exists());
    process.put("/balloon", r#"{"amount_mib":100,"deflate_on_oom":true}"#);
    let said = process.refused("PATCH", "/machine-config", r#"{"mem_size_mib":99}"#);
    assert!(
        said.contains("smaller than the previously set balloon device target size"),
        "{said}"
    );
    process.boot();
    let ended = process.end();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

/// A thousand machines, each a process of its own, leave nothing behind; here a few of them.
#[test]
fn machines_that_come_and_go_leave_nothing() {
    let folder = common::folder(&short());
    let path = folder.path().to_owned();
    for number in 0..20 {
        let socket = format!("api{number}");
        let command = program(&path, &["--api-sock", &socket]);
        let mut child = command_child(command);
        common::wait_for("the socket", || path.join(&socket).exists().then_some(()));
        let mut client = common::Client::connect(&path.join(&socket));
        let boot = r#"{"kernel_image_path":"kernel","boot_args":"console=ttyS0"}"#;
        assert_eq!(client.ask("PUT", "/boot-source", boot).status, 204);
        let vsock = r#"{"guest_cid":3,"uds_path":"v"}"#;
        assert_eq!(client.ask("PUT", "/vsock", vsock).status, 204);
        let start = r#"{"action_type":"InstanceStart"}"#;
        assert_eq!(client.ask("PUT", "/actions", start).status, 204);
        assert_eq!(child.wait().unwrap().code(), Some(0));
        // Clients take these away, as they know it.
        std::fs::remove_file(path.join(&socket)).unwrap();
        std::fs::remove_file(path.join("v")).unwrap();
    }
    let left = std::fs::read_dir(&path).unwrap().count();
    assert_eq!(left, 2, "the kernel and the disk");
}

fn command_child(mut command: std::process::Command) -> std::process::Child {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}
