//! Machines that are saved and go on in other processes.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../../tests/common/faults.rs"]
mod faults;
#[path = "../../../tests/common/pool.rs"]
mod pool;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use common::letters::*;
use pool::HugePagePool;
use serde_json::Value;

#[test]
fn a_machine_goes_on_in_another_process_beside_the_one_that_it_was() {
    let mut first = Letters::start(&[], &[]);
    first.types("a");
    first.types("ab");
    let running = first.process.refused("PUT", CREATE, FULL);
    assert!(
        running.contains("save/restore unavailable while running"),
        "{running}"
    );
    first.process.patch("/vm", PAUSED);
    first.process.put(CREATE, FULL);
    let mut second = first.beside("second", &[]);
    second.process.put(LOAD, FROM_FILE);
    assert_eq!(second.process.get("/")["state"], "Running");
    second.types("c");
    first.process.patch("/vm", RESUMED);
    first.types("abc");
    first.types("abcd");
    second.types("cd");
    let length = fs::metadata(first.process.path("memory")).unwrap().len();
    assert_eq!(length, 128 << 20);
}

#[test]
fn a_machine_that_is_loaded_stands_still_until_it_is_resumed_and_cannot_be_started() {
    let mut first = Letters::start(&[], &[]);
    first.types("a");
    first.save(FULL);
    let mut second = first.beside(
        "second",
        &["--log-path", "log", "--metrics-path", "metrics"],
    );
    // The way that SDKs of before have it, which is deprecated.
    let body = r#"{"snapshot_path":"state","mem_file_path":"memory","enable_diff_snapshots":true}"#;
    let loaded = second.process.ask("PUT", LOAD, body);
    assert_eq!(loaded.status, 204, "{loaded:?}");
    assert!(loaded.head.contains("Deprecation: true"), "{loaded:?}");
    assert_eq!(second.process.get("/")["state"], "Paused");
    let start = r#"{"action_type":"InstanceStart"}"#;
    let after = "The requested operation is not supported after starting the microVM.";
    assert_eq!(second.process.refused("PUT", "/actions", start), after);
    assert_eq!(second.process.refused("PUT", LOAD, FROM_FILE), after);
    let config = second.process.get("/vm/config");
    assert_eq!(config["machine-config"]["mem_size_mib"], 128);
    assert_eq!(config["machine-config"]["track_dirty_pages"], true);
    assert_eq!(config["boot-source"]["kernel_image_path"], "");
    second.process.patch("/vm", RESUMED);
    second.types("b");
    let log = fs::read_to_string(second.path("log")).unwrap();
    assert!(log.contains("'load snapshot' VMM action took "), "{log}");
    second.save(FULL);
    second
        .process
        .put("/actions", r#"{"action_type":"FlushMetrics"}"#);
    let metrics = fs::read_to_string(second.path("metrics")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    for key in ["load_snapshot", "full_create_snapshot"] {
        assert_ne!(last["latencies_us"][key], 0, "{key}: {metrics}");
    }
}

#[test]
fn what_changed_is_merged_onto_the_file_that_it_changed_since_at_once_or_by_the_editor() {
    let mut first = Letters::start(&[], &[TRACKED]);
    first.types("a");
    first.save(FULL);
    let base = fs::read(first.path("memory")).unwrap();
    first.types("ab");
    first.save(DIFF);
    // A few pages.
    let diff = fs::metadata(first.path("diff")).unwrap();
    assert_eq!(diff.len(), 128 << 20);
    assert!(diff.blocks() * 512 < 1 << 20, "{diff:?}");
    assert_eq!(fs::read(first.path("memory")).unwrap(), base);
    let rebase = [
        "edit-memory",
        "rebase",
        "--memory-path",
        "memory",
        "--diff-path",
        "diff",
    ];
    let folder = first.process.folder.path().to_owned();
    said(&editor(&folder, &rebase));
    let load = FROM_FILE.replace("state", "state2");
    let mut second = first.beside("second", &[]);
    second.process.put(LOAD, &load);
    second.types("c");
    // Onto the file of the one before.
    first.types("abc");
    first.save(&DIFF.replace("diff", "memory"));
    let mut third = first.beside("third", &[]);
    third.process.put(LOAD, &load);
    third.types("d");
    // The second one was mapped to the file that another one has taken the place of.
    second.types("cd");
    // What was loaded knows what it was.
    second.save(&DIFF.replace("diff", "since"));
    let since = fs::metadata(first.path("since")).unwrap();
    assert!(since.blocks() * 512 < 1 << 20, "{since:?}");
    assert_eq!(first.process.get("/")["state"], "Running");
}

/// Whatever was tracked, what is written as changed is right on what was saved before.
#[test]
fn what_changed_is_right_without_tracking() {
    let mut first = Letters::start(&[], &[]);
    first.types("a");
    first.save(DIFF);
    let whole = fs::metadata(first.path("diff")).unwrap();
    assert!(whole.blocks() * 512 < 16 << 20, "{whole:?}");
    first.types("ab");
    first.save(FULL);
    first.types("abc");
    first.save(&DIFF.replace("diff", "memory"));
    let mut second = first.beside("second", &[]);
    second
        .process
        .put(LOAD, &FROM_FILE.replace("state", "state2"));
    second.types("d");
}

#[test]
fn what_a_device_had_on_its_host_may_be_another_one() {
    let puts = [
        (
            "/drives/a",
            r#"{"drive_id":"a","is_root_device":false,"path_on_host":"disk"}"#,
        ),
        ("/vsock", r#"{"guest_cid":5,"uds_path":"v.sock"}"#),
        (
            "/balloon",
            r#"{"amount_mib":4,"deflate_on_oom":false,"stats_polling_interval_s":1}"#,
        ),
        ("/entropy", "{}"),
    ];
    let mut first = Letters::start(&["--boot-timer"], &puts);
    first.types("a");
    first.save(FULL);
    let mut body: Value = serde_json::from_str(FROM_FILE).unwrap();
    body["drive_overrides"] = serde_json::json!([{"drive_id":"a","path_on_host":"copy"}]);
    body["vsock_override"] = serde_json::json!({"uds_path":"second.sock"});
    fs::copy(first.path("disk"), first.path("copy")).unwrap();
    let mut second = first.beside("second", &[]);
    second.process.put(LOAD, &body.to_string());
    second.types("b");
    let config = second.process.get("/vm/config");
    assert_eq!(config["drives"][0]["path_on_host"], "copy");
    assert_eq!(config["vsock"]["uds_path"], "second.sock");
    assert_eq!(config["vsock"]["guest_cid"], 5);
    assert_eq!(config["balloon"]["amount_mib"], 4);
    assert!(config["entropy"].is_object());
    // What is changed is the restored machine's.
    fs::write(second.path("other"), [1; 4096]).unwrap();
    second
        .process
        .patch("/drives/a", r#"{"drive_id":"a","path_on_host":"other"}"#);
    second.process.patch("/balloon", r#"{"amount_mib":8}"#);
    assert_eq!(second.process.get("/balloon/statistics")["target_mib"], 8);
    assert!(second.path("second.sock").exists());
    // Where the first one's socket is, there is no room for another.
    let third = first.beside("third", &[]);
    let refused = third.process.refused("PUT", LOAD, FROM_FILE);
    assert!(
        refused.contains("Error binding to the host-side Unix socket"),
        "{refused}"
    );
    assert_eq!(third.process.end().status.code(), Some(1));
}

#[test]
fn another_process_brings_memory() {
    if !faults::may_handle() {
        return;
    }
    let mut first = Letters::start(&[], &[]);
    first.types("a");
    first.save(FULL);
    let memory = File::open(first.path("memory")).unwrap();
    let handler = faults::listen(&first.path("handler"), memory, |mut handler| {
        let sizes = handler.mappings.iter().map(|mapping| mapping.size);
        let size: u64 = sizes.sum();
        handler.serve(u64::MAX);
        (size, handler.brought)
    });
    let body = r#"{"snapshot_path":"state","mem_backend":{"backend_type":"Uffd","backend_path":"handler"},"resume_vm":true}"#;
    let mut second = first.beside("second", &[]);
    second.process.put(LOAD, body);
    second.types("b");
    drop(second);
    let (size, brought) = handler.join().unwrap();
    assert_eq!(size, 128 << 20);
    assert!((1..1000).contains(&brought), "{brought}");
}

/// Of the host's pool, both times, of which whoever brings memory is told.
#[test]
fn another_process_brings_memory_of_large_pages() {
    if !faults::may_handle() {
        return;
    }
    let Some(_pool) = HugePagePool::with(64) else {
        return;
    };
    let machine = r#"{"vcpu_count":1,"mem_size_mib":64,"huge_pages":"2M"}"#;
    let mut first = Letters::start(&[], &[("/machine-config", machine)]);
    first.types("a");
    first.save(FULL);
    let memory = File::open(first.path("memory")).unwrap();
    let handler = faults::listen(&first.path("handler"), memory, |mut handler| {
        let pages: Vec<_> = handler
            .mappings
            .iter()
            .map(|mapping| mapping.page)
            .collect();
        handler.serve(u64::MAX);
        (pages, handler.brought)
    });
    let body = r#"{"snapshot_path":"state","mem_backend":{"backend_type":"Uffd","backend_path":"handler"},"resume_vm":true}"#;
    let mut second = first.beside("second", &[]);
    second.process.put(LOAD, body);
    second.types("b");
    // What was not touched yet is brought for it.
    second.save(&FULL.replace("state", "state2").replace("memory", "memory2"));
    drop(second);
    let (pages, brought) = handler.join().unwrap();
    assert!(pages.iter().all(|page| *page == 2 << 20), "{pages:?}");
    assert_eq!(brought, 32);
    let body = r#"{"snapshot_path":"state2","mem_backend":{"backend_type":"File","backend_path":"memory2"},"resume_vm":true,"huge_pages":"None"}"#;
    let mut third = first.beside("third", &[]);
    third.process.put(LOAD, body);
    third.types("c");
}

/// The guest's clock cannot be seen from here; that it is moved, the library's tests show.
#[test]
fn clocks_and_pages_are_those_that_a_load_asks_for() {
    let mut first = Letters::start(&[], &[]);
    first.types("a");
    first.save(FULL);
    for (socket, pages) in [("second", "None"), ("third", "Transparent")] {
        let mut body: Value = serde_json::from_str(FROM_FILE).unwrap();
        body["clock_realtime"] = true.into();
        body["huge_pages"] = pages.into();
        let mut next = first.beside(socket, &[]);
        next.process.put(LOAD, &body.to_string());
        assert_eq!(next.process.get("/machine-config")["huge_pages"], pages);
        next.types("b");
    }
}
