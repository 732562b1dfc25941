//! The files of saved machines: good and wrong ones, new ones in the places of others, and what is said of them.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::letters::*;
use common::mounted::mounted;
use common::{Process, program};
use rustix::fs::{XattrFlags, fsetxattr};
use serde_json::Value;

#[test]
fn a_load_that_is_refused_changes_nothing() {
    let process = Process::start(&common::short(), &[]);
    for (body, fragment) in [
        ("{}", "missing field `snapshot_path`"),
        (
            r#"{"snapshot_path":"a"}"#,
            "missing field: either `mem_backend` or `mem_file_path` is required",
        ),
        (
            r#"{"snapshot_path":"a","mem_file_path":"b","mem_backend":{"backend_type":"File","backend_path":"b"}}"#,
            "too many fields: either `mem_backend` or `mem_file_path` exclusively is required.",
        ),
        (
            r#"{"snapshot_path":"a","mem_backend":{"backend_type":"Disk","backend_path":"b"}}"#,
            "unknown variant `Disk`, expected `File` or `Uffd`",
        ),
        (
            r#"{"snapshot_path":"a","mem_file_path":"b","colour":1}"#,
            "unknown field `colour`",
        ),
        (
            r#"{"snapshot_path":"a","mem_file_path":"b","huge_pages":"1G"}"#,
            "unknown variant `1G`",
        ),
    ] {
        let refused = process.refused("PUT", LOAD, body);
        assert!(refused.contains(fragment), "{body}: {refused}");
    }
    let before = "The requested operation is not supported before starting the microVM.";
    assert_eq!(process.refused("PUT", CREATE, FULL), before);
    process.put("/logger", r#"{"log_path":"log"}"#);
    process.put(
        "/drives/a",
        r#"{"drive_id":"a","is_root_device":false,"path_on_host":"disk"}"#,
    );
    let refused = process.refused("PUT", LOAD, FROM_FILE);
    assert_eq!(
        refused,
        "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."
    );
    process.boot();
    let ended = process.end();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

#[test]
fn a_load_that_fails_is_answered_and_ends_the_process() {
    let first = Letters::start(
        &[],
        &[(
            "/drives/a",
            r#"{"drive_id":"a","is_root_device":false,"path_on_host":"disk"}"#,
        )],
    );
    first.save(FULL);
    let state = fs::read(first.path("state")).unwrap();
    fs::write(first.path("cut"), &state[..state.len() / 2]).unwrap();
    fs::write(first.path("short"), "abc").unwrap();
    fs::write(first.path("nonsense"), [7; 4096]).unwrap();
    File::create(first.path("small"))
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    let open = "Load snapshot error: Failed to restore from snapshot: Failed to get snapshot state from file: Failed to open snapshot file: No such file or directory (os error 2)";
    let short = "IO Error: File too short to contain CRC";
    let memory = "Failed to load guest memory: Error creating guest memory from file: Failed to load guest memory: No such file or directory (os error 2)";
    let socket =
        "from uffd: Failed to connect to UDS Unix stream: No such file or directory (os error 2)";
    let load = |changes: &[(&str, &str)]| {
        let mut body: Value = serde_json::from_str(FROM_FILE).unwrap();
        for (pointer, value) in changes {
            *body.pointer_mut(pointer).unwrap() = (*value).into();
        }
        body.to_string()
    };
    let with = |key: &str, value: Value| {
        let mut body: Value = serde_json::from_str(FROM_FILE).unwrap();
        body[key] = value;
        body.to_string()
    };
    let nowhere = serde_json::json!([{"drive_id":"a","path_on_host":"nowhere"}]);
    let tests = [
        ("1", load(&[("/snapshot_path", "nowhere")]), open),
        ("2", load(&[("/snapshot_path", "short")]), short),
        ("3", load(&[("/snapshot_path", "cut")]), "it is damaged"),
        (
            "4",
            load(&[("/snapshot_path", "nonsense")]),
            "it is no saved machine",
        ),
        (
            "5",
            load(&[("/mem_backend/backend_path", "nowhere")]),
            memory,
        ),
        (
            "6",
            load(&[("/mem_backend/backend_path", "small")]),
            "67108864 bytes",
        ),
        (
            "7",
            load(&[
                ("/mem_backend/backend_type", "Uffd"),
                ("/mem_backend/backend_path", "nowhere"),
            ]),
            socket,
        ),
        (
            "8",
            with("drive_overrides", nowhere),
            "Virtio backend error: Error manipulating the backing file: No such file or directory (os error 2)",
        ),
        (
            "9",
            with(
                "network_overrides",
                serde_json::json!([{"iface_id":"x","host_dev_name":"y"}]),
            ),
            "Unknown Network Device",
        ),
        (
            "10",
            with("vsock_override", serde_json::json!({"uds_path":"x"})),
            "Unknown Vsock Device",
        ),
        (
            "11",
            load(&[("/snapshot_path", ".")]),
            "it is no regular file",
        ),
    ];
    for (socket, body, fragment) in tests {
        let second = first.beside(socket, &[]);
        let refused = second.process.refused("PUT", LOAD, &body);
        assert!(refused.contains(fragment), "{body}: {refused}");
        let ended = second.process.end();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(fragment), "{ended:?}");
    }
    // And the one that it was, runs.
    assert_eq!(first.process.get("/")["state"], "Running");
}

#[test]
fn files_that_are_there_keep_their_owners_modes_and_links_and_are_whole_or_as_they_were() {
    let first = Letters::start(&[], &[]);
    fs::write(first.path("state"), "precious").unwrap();
    fs::set_permissions(first.path("state"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::create_dir(first.path("elsewhere")).unwrap();
    fs::write(first.path("elsewhere/memory"), "precious").unwrap();
    symlink("elsewhere/memory", first.path("memory")).unwrap();
    first.process.patch("/vm", PAUSED);
    for (body, fragment) in [
        (
            r#"{"snapshot_path":"state","mem_file_path":"nowhere/memory"}"#,
            "No such file",
        ),
        (
            r#"{"snapshot_path":"nowhere/state","mem_file_path":"memory"}"#,
            "No such file",
        ),
        (
            r#"{"snapshot_path":"state","mem_file_path":"/dev/null"}"#,
            "it is no regular file",
        ),
        (
            r#"{"snapshot_path":"state","mem_file_path":"./state"}"#,
            "the same file",
        ),
        (
            r#"{"snapshot_path":"elsewhere","mem_file_path":"memory"}"#,
            "directory",
        ),
    ] {
        let refused = first.process.refused("PUT", CREATE, body);
        assert!(refused.starts_with("Create snapshot error: "), "{refused}");
        assert!(refused.contains(fragment), "{body}: {refused}");
        for name in ["state", "memory"] {
            assert_eq!(fs::read(first.path(name)).unwrap(), b"precious", "{body}");
        }
    }
    first.process.put(CREATE, FULL);
    let state = fs::metadata(first.path("state")).unwrap();
    assert_eq!(state.mode() & 0o777, 0o640);
    assert!(first.path("memory").is_symlink());
    assert_eq!(
        fs::metadata(first.path("elsewhere/memory")).unwrap().len(),
        128 << 20
    );
    // Nothing else is left.
    let mut names: Vec<_> = fs::read_dir(first.process.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["api", "disk", "elsewhere", "kernel", "memory", "state"]
    );
}

#[test]
fn what_a_saved_machine_is_can_be_read() {
    let first = Letters::start(&[], &[]);
    first.save(FULL);
    let folder = first.process.folder.path();
    let text = |arguments: &[&str]| {
        let output = program(folder, arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let version = text(&["--snapshot-version"]);
    let numbers = version.trim_end().strip_prefix('v').unwrap().split('.');
    let numbers: Vec<u32> = numbers.map(|number| number.parse().unwrap()).collect();
    assert_eq!(numbers.len(), 3);
    assert_eq!(text(&["--describe-snapshot", "state"]), version);
    for (path, fragment) in [
        ("nowhere", "No such file"),
        ("kernel", "it is no saved machine"),
    ] {
        let output = program(folder, &["--describe-snapshot", path])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(fragment),
            "{output:?}"
        );
        let output = editor(folder, &["info-vmstate", "version", "--vmstate-path", path]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(fragment),
            "{output:?}"
        );
    }
    let info = |what| editor(folder, &["info-vmstate", what, "--vmstate-path", "state"]);
    assert_eq!(said(&info("version")), version);
    assert!(said(&info("vcpu-states")).starts_with("vcpu 0:\n{"));
    let all: Value = serde_json::from_str(said(&info("vm-state"))).unwrap();
    assert_eq!(all["plan"]["arch"], "x86_64");
    assert!(all["kvm"]["vcpus"][0].is_object());
    // And files of other machines' memory are not put together.
    let rebase = [
        "edit-memory",
        "rebase",
        "--memory-path",
        "memory",
        "--diff-path",
        "disk",
    ];
    let output = editor(folder, &rebase);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("disk has 4096: they are not of one machine"),
        "{said}"
    );
}

/// Whether files in a folder can be marked.
fn marks(folder: &Path) -> bool {
    let file = File::open(folder.join("disk")).unwrap();
    let can = fsetxattr(&file, "user.test", b"", XattrFlags::empty()).is_ok();
    if !can {
        eprintln!("SKIPPED: the file system has no extended attributes");
    }
    can
}

/// Two files cannot take their places at once. Whoever looks in between finds one pair.
#[test]
fn r46_a_state_that_had_no_time_to_take_its_place_is_found_by_its_memory() {
    let mut first = Letters::start(&[], &[]);
    if !marks(first.process.folder.path()) {
        return;
    }
    first.types("a");
    first.save(FULL);
    fs::rename(first.path("state"), first.path("old-state")).unwrap();
    fs::hard_link(first.path("memory"), first.path("old-memory")).unwrap();
    first.types("ab");
    first.save(FULL);
    fs::rename(first.path("state"), first.path(".state.next")).unwrap();
    // For the first time, and where there was one before.
    let mut second = first.beside("second", &[]);
    second.process.put(LOAD, FROM_FILE);
    second.types("c");
    fs::rename(first.path("old-state"), first.path("state")).unwrap();
    let mut third = first.beside("third", &[]);
    third.process.put(LOAD, FROM_FILE);
    third.types("c");
    // Memory had not taken its place.
    fs::rename(first.path("old-memory"), first.path("memory")).unwrap();
    let mut fourth = first.beside("fourth", &[]);
    fourth.process.put(LOAD, FROM_FILE);
    fourth.types("b");
    // The next one leaves nothing of it.
    first.types("abc");
    first.save(FULL);
    assert!(!first.path(".state.next").exists());
    let mut fifth = first.beside("fifth", &[]);
    fifth.process.put(LOAD, FROM_FILE);
    fifth.types("d");
}

/// In a folder like /tmp anybody may put a file beside the named one.
#[test]
fn a_state_that_waits_and_may_be_of_somebody_else_is_left_alone() {
    let mut first = Letters::start(&[], &[]);
    if !marks(first.process.folder.path()) {
        return;
    }
    first.types("a");
    first.save(FULL);
    let pending = first.path(".state.next");
    fs::rename(first.path("state"), first.path("elsewhere")).unwrap();
    let elsewhere = first.path("elsewhere");
    let put = |mode: u32| {
        fs::copy(&elsewhere, &pending).unwrap();
        fs::set_permissions(&pending, fs::Permissions::from_mode(mode)).unwrap();
    };
    // There is no other state: this one is taken, or none.
    let refused = |first: &Letters, socket| {
        let process = first.beside(socket, &[]).process;
        let said = process.refused("PUT", LOAD, FROM_FILE);
        assert!(said.contains("No such file"), "{socket}: {said}");
    };
    put(0o666);
    refused(&first, "written-by-all");
    put(0o620);
    refused(&first, "written-by-group");
    fs::remove_file(&pending).unwrap();
    symlink("elsewhere", &pending).unwrap();
    refused(&first, "link");
    fs::remove_file(&pending).unwrap();
    put(0o600);
    if rustix::process::geteuid().is_root() {
        chown(&pending, Some(1234), None).unwrap();
        refused(&first, "other-user");
        // And the next state does not take its place, nor waits there.
        first.types("ab");
        first.save(FULL);
        assert_eq!(fs::metadata(&pending).unwrap().uid(), 1234);
        let memory = first.path("memory");
        fs::rename(first.path("state"), first.path("elsewhere")).unwrap();
        put(0o600);
        // Memory of the same owner is his machine.
        chown(memory, Some(1234), None).unwrap();
    }
    let second = first.beside("own", &[]);
    second.process.put(LOAD, FROM_FILE);
}

/// As container engines hand a file in.
#[test]
fn a_file_that_is_mounted_there_is_written_where_it_is() {
    let script = "mount --bind mounted memory";
    let Some(process) = mounted(script, &["memory", "mounted"]) else {
        return;
    };
    for body in [FULL, &FULL.replace("Full", "Diff")] {
        process.put(CREATE, body);
        let mounted = fs::metadata(process.path("mounted")).unwrap();
        assert_eq!(mounted.len(), 128 << 20);
    }
    // Another one has it for its memory, and is saved to it.
    let mut command = Command::new("nsenter");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--preserve-credentials"]);
    }
    command
        .arg(format!("--target={}", process.pid()))
        .arg("--mount")
        .arg(format!("--wdns={}", process.folder.path().display()))
        .arg(env!("CARGO_BIN_EXE_firecracker"))
        .args(["--api-sock", "second"])
        .current_dir(process.folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut second = Process::of(Arc::clone(&process.folder), command);
    second.is_at("second");
    second.put(LOAD, FROM_FILE);
    let mut stdin = second.stdin();
    let mut typed = |printed: &str| {
        std::io::Write::write_all(&mut stdin, b"x").unwrap();
        common::wait_for(printed, || (second.printed() == printed).then_some(()));
    };
    typed("a");
    for (kind, before, after) in [("Full", "ab", "abc"), ("Diff", "abcd", "abcde")] {
        second.patch("/vm", PAUSED);
        second.put(CREATE, &FULL.replace("Full", kind));
        second.patch("/vm", RESUMED);
        typed(before);
        typed(after);
    }
}

#[test]
fn r46_a_disk_that_is_full_leaves_the_pair_of_before() {
    let script = "mount -t tmpfs -o size=16k none small && printf precious >small/memory";
    let Some(process) = mounted(script, &["state"]) else {
        return;
    };
    // It is in the program's namespace.
    let inside = |name: &str| {
        let folder = process.folder.path().to_str().unwrap();
        format!("/proc/{}/root{folder}/{name}", process.pid())
    };
    let body = FULL.replace("\"memory", "\"small/memory");
    for kind in ["Full", "Diff"] {
        let body = body.replace("Full", kind);
        let refused = process.refused("PUT", CREATE, &body);
        assert!(refused.contains("No space left on device"), "{refused}");
        assert_eq!(fs::read(inside("small/memory")).unwrap(), b"precious");
        assert_eq!(fs::read(process.path("state")).unwrap(), b"before");
        assert_eq!(fs::read_dir(inside("small")).unwrap().count(), 1);
    }
    // It goes on, and can be saved elsewhere.
    process.patch("/vm", RESUMED);
    process.patch("/vm", PAUSED);
    process.put(CREATE, FULL);
}
