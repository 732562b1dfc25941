//! The metadata service as clients of the API set it up.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{Process, busy, folder, program_with_network, wait_for};
use serde_json::json;

/// A process that may make tap devices; `None` where there can be none.
fn with_network(arguments: &[&str]) -> Option<Process> {
    let folder = folder(&busy());
    let all = [&["--api-sock", "api"], arguments].concat();
    let Some(command) = program_with_network(folder.path(), &all) else {
        eprintln!("SKIPPED: no network namespace, or no /dev/net/tun");
        return None;
    };
    let process = Process::of(folder, command);
    wait_for("the socket", || process.path("api").exists().then_some(()));
    Some(process)
}

#[test]
fn metadata_is_put_patched_and_read_before_and_after_the_start() {
    let Some(process) = with_network(&["--mmds-size-limit", "40"]) else {
        return;
    };
    assert_eq!(process.get("/mmds"), json!({}));
    let empty = "MMDS error: The MMDS data store is not initialized.";
    assert_eq!(process.refused("PATCH", "/mmds", "{}"), empty);
    process.put("/mmds", r#"{"a":{"b":1,"c":2}}"#);
    process.patch("/mmds", r#"{"a":{"b":null,"d":"e"}}"#);
    let data = json!({"a": {"c": 2, "d": "e"}});
    assert_eq!(process.get("/mmds"), data);
    let large = json!({ "x": "y".repeat(40) }).to_string();
    for method in ["PUT", "PATCH"] {
        let answer = process.ask(method, "/mmds", &large);
        assert_eq!(answer.status, 413, "{answer:?}");
        let said = answer.json();
        assert_eq!(
            said["fault_message"],
            "MMDS limit exceeded error: The MMDS patch request doesn't fit."
        );
    }
    assert_eq!(process.get("/mmds"), data);

    let network = r#"{"iface_id":"eth0","host_dev_name":"tap0"}"#;
    process.put("/network-interfaces/eth0", network);
    for (body, cause) in [
        (
            r#"{"network_interfaces":[]}"#,
            "The list of network interface IDs that allow forwarding MMDS requests is empty.",
        ),
        (
            r#"{"network_interfaces":["eth0","eth1"]}"#,
            "contains at least one ID that does not correspond to any existing network interface.",
        ),
        (
            r#"{"network_interfaces":["eth0"],"ipv4_address":"1.1.1.1"}"#,
            "The MMDS IPv4 address is not link local.",
        ),
        (
            r#"{"network_interfaces":["eth0"],"ipv4_address":""}"#,
            "invalid IPv4 address syntax",
        ),
        (
            r#"{"network_interfaces":["eth0"],"version":"foo"}"#,
            "unknown variant `foo`, expected `V1` or `V2`",
        ),
        (r#"{"version":"V2"}"#, "missing field `network_interfaces`"),
        (
            r#"{"network_interfaces":["eth0"],"x":1}"#,
            "unknown field `x`",
        ),
    ] {
        let said = process.refused("PUT", "/mmds/config", body);
        assert!(said.contains(cause), "{body}: {said}");
    }
    let shown = || process.get("/vm/config")["mmds-config"].clone();
    assert_eq!(shown(), json!(null));
    let mut config = json!({"network_interfaces": ["eth0"]});
    let old = process.ask("PUT", "/mmds/config", &config.to_string());
    assert!(old.head.contains("\r\nDeprecation: true\r\n"), "{old:?}");
    config["version"] = "V2".into();
    config["imds_compat"] = true.into();
    let new = process.ask("PUT", "/mmds/config", &config.to_string());
    assert!(!new.head.contains("Deprecation"), "{new:?}");
    config["ipv4_address"] = "169.254.169.254".into();
    assert_eq!(shown(), config);

    process.boot();
    process.wait_for("up\n");
    assert_eq!(process.get("/mmds"), data);
    process.put("/mmds", "[1]");
    assert_eq!(process.get("/mmds"), json!([1]));
}

#[test]
fn metadata_without_a_network_device_is_for_nobody_after_the_start() {
    let process = Process::start(&busy(), &[]);
    process.put("/mmds", r#"{"a":1}"#);
    process.boot();
    let nobody = "MMDS error: The MMDS data store is not initialized.";
    for (method, body) in [("GET", ""), ("PUT", "{}"), ("PATCH", "{}")] {
        assert_eq!(process.refused(method, "/mmds", body), nobody, "{method}");
    }
}

#[test]
fn metadata_of_a_file_is_there_or_the_process_is_not() {
    let spawn = |content: &str, arguments: &[&str]| {
        let folder = folder(&busy());
        fs::write(folder.path().join("m.json"), content).unwrap();
        let all = [&["--api-sock", "api", "--metadata", "m.json"], arguments].concat();
        Process::spawn(folder, &all)
    };
    let process = spawn(r#"{"a":1}"#, &[]);
    wait_for("the socket", || process.path("api").exists().then_some(()));
    assert_eq!(process.get("/mmds"), json!({"a": 1}));
    for (content, arguments, cause) in [
        ("{", &[][..], "it is no valid JSON"),
        (
            r#"{"a":1}"#,
            &["--mmds-size-limit", "6"],
            "MMDS limit exceeded",
        ),
    ] {
        let ended = spawn(content, arguments).end();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(cause), "{ended:?}");
        assert!(ended.stderr.contains("m.json"), "{ended:?}");
    }
}
