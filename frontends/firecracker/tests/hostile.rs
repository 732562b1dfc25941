//! Bad input: of bodies, of requests, and of clients that are silent, slow or never listen. None of it ends the process,
//! keeps others from it or is answered with anything but a 400 in JSON.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use common::{Client, Process, busy, short};
use serde_json::{Value, json};

/// Bodies that are taken before the start, with their paths; `true`: by PATCH after it.
fn bodies() -> Vec<(&'static str, &'static str, Value)> {
    let limiter =
        json!({ "bandwidth": { "size": 1, "one_time_burst": 1, "refill_time": 1 }, "ops": null });
    vec![
        (
            "PUT",
            "/boot-source",
            json!({ "kernel_image_path": "kernel", "initrd_path": null, "boot_args": "a" }),
        ),
        (
            "PUT",
            "/machine-config",
            json!({
                "vcpu_count": 1, "mem_size_mib": 64, "smt": false, "track_dirty_pages": false, "huge_pages": "None",
            }),
        ),
        ("PATCH", "/machine-config", json!({ "vcpu_count": 1 })),
        (
            "PUT",
            "/drives/a",
            json!({
                "drive_id": "a", "is_root_device": false, "path_on_host": "disk", "is_read_only": true, "partuuid": null,
                "cache_type": "Writeback", "io_engine": "Async", "rate_limiter": limiter,
            }),
        ),
        (
            "PUT",
            "/vsock",
            json!({ "guest_cid": 3, "uds_path": "v.sock" }),
        ),
        (
            "PUT",
            "/balloon",
            json!({
                "amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 1, "free_page_hinting": true,
                "free_page_reporting": true,
            }),
        ),
        ("PUT", "/entropy", json!({ "rate_limiter": limiter })),
        (
            "PUT",
            "/serial",
            json!({ "serial_out_path": "serial", "rate_limiter": limiter["bandwidth"] }),
        ),
        (
            "PUT",
            "/logger",
            json!({
                "log_path": "log", "level": "Info", "show_level": true, "show_log_origin": true, "module": "",
            }),
        ),
        ("PUT", "/actions", json!({ "action_type": "FlushMetrics" })),
        ("PATCH", "/vm", json!({ "state": "Paused" })),
        ("PUT", "/cpu-config", json!({ "cpuid_modifiers": [] })),
        // Neither is possible by now.
        (
            "PUT",
            "/snapshot/create",
            json!({ "snapshot_type": "Full", "snapshot_path": "state", "mem_file_path": "memory" }),
        ),
        (
            "PUT",
            "/snapshot/load",
            json!({
                "snapshot_path": "state", "mem_backend": { "backend_type": "File", "backend_path": "memory" },
                "mem_file_path": null, "track_dirty_pages": true, "enable_diff_snapshots": true, "resume_vm": true,
                "network_overrides": [{ "iface_id": "a", "host_dev_name": "b" }],
                "vsock_override": { "uds_path": "v.sock" },
                "drive_overrides": [{ "drive_id": "a", "path_on_host": "b" }], "clock_realtime": true,
                "huge_pages": "Snapshot",
            }),
        ),
    ]
}

/// Values of every kind.
fn values() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(0),
        json!(-1),
        json!(u64::MAX),
        json!(1e300),
        json!(""),
        json!("\u{0}"),
        json!("x".repeat(20_000)),
        json!([1, 2]),
        json!({}),
        json!({ "a": { "b": [] } }),
    ]
}

#[test]
fn r49_every_field_of_every_body_may_be_anything() {
    let process = Process::start(&short(), &["--log-path", "log"]);
    let mut client = process.client();
    let mut asked = 0;
    for (method, path, body) in bodies() {
        let fields: Vec<_> = body.as_object().unwrap().keys().cloned().collect();
        let mut wrong = vec![json!([]), json!(null), json!("x"), json!({ "unknown": 1 })];
        for field in &fields {
            let mut without = body.clone();
            without.as_object_mut().unwrap().remove(field);
            wrong.push(without);
            for value in values() {
                let mut other = body.clone();
                other[field] = value;
                wrong.push(other);
            }
        }
        let mut more = body.clone();
        more["unknown"] = json!(1);
        wrong.push(more);
        for body in &wrong {
            // What is as fine as what it stands for is done.
            let answer = client.ask(method, path, &body.to_string());
            assert!(
                [204, 400].contains(&answer.status),
                "{method} {path} {body}: {answer:?}"
            );
            if answer.status == 400 {
                assert!(answer.json()["fault_message"].is_string(), "{answer:?}");
            }
            asked += 1;
        }
        let unknown = client.ask(method, path, &wrong[wrong.len() - 1].to_string());
        assert!(
            unknown.body.contains("unknown field `unknown`"),
            "{path}: {unknown:?}"
        );
    }
    assert!(asked > 400, "{asked}");
    // What it is in the end still starts.
    process.put("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128}"#);
    let drive = json!({ "drive_id": "a", "is_root_device": false, "path_on_host": "disk", "is_read_only": true });
    process.put("/drives/a", &drive.to_string());
    process.put("/balloon", r#"{"amount_mib":1,"deflate_on_oom":true}"#);
    process.put("/serial", "{}");
    process.boot();
    let ended = process.end();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.guest().contains("hello"), "{ended:?}");
}

#[test]
fn values_that_no_machine_has_are_refused_by_their_texts() {
    let process = Process::start(&short(), &[]);
    for (method, path, body, cause) in [
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":0,"mem_size_mib":1}"#,
            "The number of vCPUs must be greater than 0",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":33,"mem_size_mib":1}"#,
            "The number of vCPUs must be greater than 0, less than 32",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":3,"mem_size_mib":1,"smt":true}"#,
            "1 or an even number if SMT is enabled",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":0}"#,
            "The memory size (MiB) is either 0, or not a multiple",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":3,"huge_pages":"2M"}"#,
            "not a multiple of the configured page size",
        ),
        (
            "PUT",
            "/boot-source",
            r#"{"kernel_image_path":"kernel","boot_args":"a\nb"}"#,
            "The kernel command line is invalid: ",
        ),
        (
            "PUT",
            "/boot-source",
            r#"{"kernel_image_path":"kernel","initrd_path":"no"}"#,
            "The initrd file cannot be opened due to invalid path or invalid permissions. No such file",
        ),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id":"a","is_root_device":false}"#,
            "Invalid block config.",
        ),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id":"a","is_root_device":false,"socket":"s"}"#,
            "vhost-user",
        ),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id":"a","is_root_device":false,"path_on_host":"no"}"#,
            "Error manipulating the backing file: No such file or directory (os error 2) no",
        ),
        (
            "PUT",
            "/network-interfaces/a",
            r#"{"iface_id":"a","host_dev_name":"t","mtu":67}"#,
            "MTU 67 is out of range [68, 65535]",
        ),
        (
            "PUT",
            "/network-interfaces/a",
            r#"{"iface_id":"a","host_dev_name":"a name that is too long"}"#,
            "Open tap device failed: Invalid interface name",
        ),
        (
            "PUT",
            "/network-interfaces/a",
            r#"{"iface_id":"a","host_dev_name":"t","guest_mac":"x"}"#,
            "The provided MAC address is invalid.",
        ),
        (
            "PUT",
            "/vsock",
            r#"{"guest_cid":3,"uds_path":"/nowhere/v"}"#,
            "Error binding to the host-side Unix socket: No such file",
        ),
        (
            "PUT",
            "/vsock",
            r#"{"guest_cid":3,"uds_path":"disk"}"#,
            "Address already in use (os error 98)",
        ),
        (
            "PUT",
            "/balloon",
            r#"{"amount_mib":129,"deflate_on_oom":true}"#,
            "Amount of pages requested is too large.",
        ),
        ("GET", "/balloon", "", "No balloon device found."),
        (
            "PUT",
            "/metrics",
            r#"{"metrics_path":"/nowhere/m"}"#,
            "Cannot initialize the metrics system due to bad user input: No such file",
        ),
        (
            "PUT",
            "/logger",
            r#"{"level":"loud"}"#,
            "Invalid LevelFilter",
        ),
        (
            "PUT",
            "/cpu-config",
            r#"{"msr_modifiers":[{}]}"#,
            "not in this version",
        ),
    ] {
        let said = process.refused(method, path, body);
        assert!(said.contains(cause), "{path} {body}: {said}");
    }
}

#[test]
fn r49_silent_slow_and_flooding_clients_lock_nobody_out() {
    let process = Process::start(&busy(), &[]);
    process.boot();
    let silent: Vec<_> = (0..10).map(|_| process.client()).collect();
    let mut slow: Vec<_> = (0..10).map(|_| process.client()).collect();
    for client in &mut slow {
        client.send(b"PUT /vm HTTP/1.1\r\nContent-Le");
    }
    // They ask without end and fetch nothing.
    let floods: Vec<_> = (0..10)
        .map(|_| {
            let client = process.client();
            client.0.set_nonblocking(true).unwrap();
            let request = b"GET /vm/config HTTP/1.1\r\n\r\n".repeat(100);
            while (&client.0).write(&request).is_ok() {}
            client
        })
        .collect();
    let mut good = process.client();
    for _ in 0..200 {
        assert_eq!(good.ask("GET", "/", "").json()["state"], "Running");
    }
    // More of them than there is room for.
    let crowd: Vec<_> = (0..100).map(|_| process.client()).collect();
    for _ in 0..20 {
        assert_eq!(process.get("/")["state"], "Running");
    }
    // A request that is never whole is answered, and its connection ends.
    for client in &mut slow {
        if let Some(answer) = client.answer() {
            assert_eq!(answer.status, 400);
            assert!(answer.head.contains("Connection: close"), "{answer:?}");
            assert!(client.answer().is_none());
        }
    }
    drop((silent, floods, crowd));
    assert_eq!(process.get("/")["state"], "Running");
}

#[test]
fn r49_a_client_that_says_all_and_shuts_down_is_answered() {
    let process = Process::start(&short(), &[]);
    let mut client = process.client();
    client.send(b"GET /version HTTP/1.1\r\n\r\nGET / HTTP/1.0\r\n\r\n");
    client.0.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    client.0.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 \r\n").count(), 2, "{text}");
    // In chunks, as some clients send what they have not measured.
    let mut client = process.client();
    client.send(b"PUT /machine-config HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(b"f\r\n{\"vcpu_count\":2\r\n13\r\n,\"mem_size_mib\":64}\r\n0\r\n\r\n");
    assert_eq!(client.answer().unwrap().status, 204);
    assert_eq!(
        client.ask("GET", "/machine-config", "").json()["vcpu_count"],
        2
    );
    // One that waits for a word first.
    client.send(b"PUT /balloon HTTP/1.1\r\nContent-Length: 38\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.answer().unwrap().status, 100);
    client.send(br#"{"amount_mib":1,"deflate_on_oom":true}"#);
    assert_eq!(client.answer().unwrap().status, 204);
    // One that wants no more.
    client.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert!(client.answer().unwrap().head.contains("Connection: close"));
    assert!(client.answer().is_none());
}

#[test]
fn r49_what_is_no_request_is_refused_in_json_and_nobody_else_hears_of_it() {
    let process = Process::start(&short(), &["--http-api-max-payload-size", "100"]);
    let mut other = process.client();
    for (bytes, cause) in [
        (
            &b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"[..],
            "Invalid request.",
        ),
        (b"POST / HTTP/1.1\r\n\r\n", "Invalid HTTP Method"),
        (b"GET / HTTP/3.0\r\n\r\n", "Invalid HTTP Version"),
        (
            b"PUT /logger HTTP/1.1\r\nContent-Length: 101\r\n\r\n",
            "Request payload with size 101 is larger than the limit of 100 allowed by server.",
        ),
        (
            b"PUT /logger HTTP/1.1\r\nContent-Length: 4294967296\r\n\r\n",
            "Request payload with size 4294967296 is larger than the limit of 100 allowed by server.",
        ),
    ] {
        let mut client = process.client();
        client.send(bytes);
        // What still comes is not what is answered, and takes the answer from nobody.
        let _ = client.0.write(&[b'x'; 5000]);
        let answer = client.answer().unwrap();
        assert_eq!(answer.status, 400, "{answer:?}");
        let body = answer.json();
        assert!(
            body["fault_message"].as_str().unwrap().contains(cause),
            "{body}"
        );
        assert!(
            body["error"]
                .as_str()
                .unwrap()
                .ends_with("\nAll previous unanswered requests will be dropped.")
        );
        assert_eq!(other.ask("GET", "/version", "").status, 200);
    }
}

#[test]
fn a_name_makes_no_line_of_the_log() {
    let process = Process::start(&short(), &["--log-path", "log"]);
    let drive = json!({ "drive_id": "a", "is_root_device": false, "path_on_host": "x\nforged" });
    let said = process.refused("PUT", "/drives/a", &drive.to_string());
    assert!(said.ends_with("x\nforged"), "{said}");
    let log = std::fs::read_to_string(process.path("log")).unwrap();
    assert!(
        log.contains("x\\nforged") && !log.contains("\nforged"),
        "{log}"
    );
}

/// What a client of old may do: nothing for a while, on one connection.
#[test]
fn a_connection_that_rests_is_kept() {
    let process = Process::start(&short(), &[]);
    let mut client: Client = process.client();
    assert_eq!(client.ask("GET", "/", "").status, 200);
    let begun = Instant::now();
    // Longer than any deadline.
    while begun.elapsed() < Duration::from_secs(6) {
        assert_eq!(process.get("/version")["firecracker_version"], "1.16.0");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(client.ask("GET", "/", "").status, 200);
}
