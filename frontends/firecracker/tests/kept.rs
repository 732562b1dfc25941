//! A process that is asked for much keeps none of it.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{Process, short};
use serde_json::json;

/// Rounds until the process has what it keeps, and after that.
const WARM_UP: usize = 50;
const ROUNDS: usize = 400;
/// Each has this many starts that fail.
const STARTS: usize = 20;
/// What it may have more of than before, in bytes, for whatever number of rounds.
const SLACK: u64 = 256 << 10;

/// Memory that is there, in bytes, and descriptors.
fn kept(process: &Process) -> (u64, usize) {
    let folder = format!("/proc/{}", process.pid());
    let status = fs::read_to_string(format!("{folder}/status")).unwrap();
    let memory = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    let kib: u64 = memory.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    let descriptors = fs::read_dir(format!("{folder}/fd")).unwrap().count();
    (kib << 10, descriptors)
}

/// Requests that are carried out, refused, and no requests at all.
fn round(process: &Process, number: usize) {
    let metadata = json!({ "a": "x".repeat(10_000), "b": number }).to_string();
    process.put("/mmds", &metadata);
    process.patch("/mmds", r#"{"a":null,"c":{"d":[1,2,3]}}"#);
    assert_eq!(process.get("/mmds")["b"], number);
    let drive = r#"{"drive_id":"d","is_root_device":false,"path_on_host":"disk"}"#;
    process.put("/drives/d", drive);
    process.put("/vsock", r#"{"guest_cid":3,"uds_path":"v"}"#);
    process.put("/boot-source", r#"{"kernel_image_path":"disk"}"#);
    process.get("/vm/config");
    process.refused("PUT", "/boot-source", r#"{"kernel_image_path":"none"}"#);
    process.refused("PUT", "/drives/e", &"[".repeat(1000));
    let mut client = process.client();
    client.send(b"NONSENSE\r\n\r\n");
    assert_eq!(client.answer().unwrap().status, 400);
}

#[test]
fn requests_and_starts_that_fail_leave_nothing_in_the_process() {
    let process = Process::start(&short(), &["--level", "Off"]);
    // A disk of zeros is no kernel.
    let start = || process.refused("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    (0..WARM_UP).for_each(|number| round(&process, number));
    (0..STARTS).for_each(|_| drop(start()));
    let before = kept(&process);
    (0..ROUNDS).for_each(|number| round(&process, number));
    (0..STARTS).for_each(|_| drop(start()));
    // The last client may not have gone yet.
    common::wait_for("the descriptors", || {
        (kept(&process).1 <= before.1).then_some(())
    });
    let after = kept(&process);
    println!("{before:?} {after:?}");
    assert!(after.0 < before.0 + SLACK, "{before:?} {after:?}");
}
