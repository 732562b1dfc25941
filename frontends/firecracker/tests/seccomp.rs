//! Filters of system calls: which threads have one, what a user's own does, and what `seccompiler-bin` takes.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use common::letters::{CREATE, FULL};
use common::mounted::mounted;
use common::{Process, busy, folder, short, wait_for};
use serde_json::{Value, json};

/// What the kernel says of each thread: its name, whether it has filters, and how many.
fn threads(process: &Process) -> Vec<(String, String, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap();
    let told = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("status")).ok()?;
        let value = |key: &str| {
            let mut lines = text.lines();
            let line = lines.find_map(|line| line.strip_prefix(key));
            line.unwrap_or_default().trim().to_owned()
        };
        Some((value("Name:"), value("Seccomp:"), value("Seccomp_filters:")))
    };
    tasks.filter_map(|task| told(task.unwrap())).collect()
}

/// A machine with a disk, random bytes and a balloon, which runs.
fn start(process: &Process) {
    process.put(
        "/drives/d",
        r#"{"drive_id":"d","path_on_host":"disk","is_root_device":false,"is_read_only":true,"io_engine":"Async"}"#,
    );
    process.put("/entropy", "{}");
    process.put("/balloon", r#"{"amount_mib":1,"deflate_on_oom":true}"#);
    process.boot();
    process.wait_for("up\n");
}

#[test]
fn every_thread_has_a_filter_unless_none_is_wanted() {
    for (arguments, level) in [(&[][..], "2"), (&["--no-seccomp"][..], "0")] {
        let process = Process::start(&busy(), arguments);
        let begun = || {
            let mut threads = threads(&process).into_iter();
            threads
                .all(|(_, seccomp, _)| seccomp == level)
                .then_some(())
        };
        wait_for("filters of a process that waits", begun);
        start(&process);
        // What all are refused, and each one's own. The one that tells of violations is older than the first.
        let filters = |name: &str| match (level, name) {
            ("0", _) => "0",
            (_, "fc_clock") => "1",
            _ => "2",
        };
        let all_have = || {
            let threads = threads(&process);
            // Rings of io_uring have threads of the kernel's own at times.
            let mut ours = threads
                .iter()
                .filter(|(name, ..)| !name.starts_with("iou-"));
            let done = ours.all(|(name, seccomp, count)| {
                seccomp == level && count == filters(name) && threads.len() >= 6
            });
            done.then_some(())
        };
        wait_for("filters", all_have);
    }
}

fn seccompiler(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seccompiler-bin"));
    command.args(arguments).current_dir(folder);
    command.output().unwrap()
}

/// A file of filters in the process' folder, of one for each kind of thread.
fn compile(folder: &Path, filters: &Value) {
    fs::write(folder.join("filters.json"), filters.to_string()).unwrap();
    let made = seccompiler(
        folder,
        &[
            "--target-arch",
            "x86_64",
            "--input-file",
            "filters.json",
            "--output-file",
            "filters",
        ],
    );
    assert!(made.status.success(), "{made:?}");
    assert!(made.stdout.is_empty() && made.stderr.is_empty(), "{made:?}");
}

#[test]
fn a_file_that_would_be_larger_than_it_may_is_an_error_and_nothing_of_it_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let filter = json!({ "main": without("trap", &["reboot"]) });
    fs::write(folder.path().join("filters.json"), filter.to_string()).unwrap();
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 0 && exec \"$@\"", "sh"]);
    limited.arg(env!("CARGO_BIN_EXE_seccompiler-bin"));
    limited.args(["--target-arch=x86_64", "--input-file=filters.json"]);
    let ended = limited.arg("--output-file=new").current_dir(folder.path());
    let ended = ended.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(said.contains("File too large"), "{said}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Lets through what it does not name.
fn without(action: &str, calls: &[&str]) -> Value {
    let rules: Vec<_> = calls
        .iter()
        .map(|call| json!({ "syscall": call }))
        .collect();
    json!({ "default_action": "allow", "filter_action": action, "filter": rules })
}

fn process(filters: &Value, code: &[u8]) -> Process {
    let folder = folder(code);
    compile(folder.path(), filters);
    let arguments = [
        "--seccomp-filter",
        "filters",
        "--metrics-path",
        "m",
        "--api-sock",
        "api",
    ];
    let mut process = Process::spawn(folder, &arguments);
    process.is_at("api");
    process
}

#[test]
fn a_users_filters_are_those_of_the_threads_that_they_name() {
    let all = without("trap", &[]);
    // New threads and programs end the process, once the machine runs.
    let some = without("kill_process", &["clone", "clone3", "execve"]);
    for filter in [all, some] {
        let filters = json!({ "vmm": filter, "api": filter, "vcpu": filter });
        let process = process(&filters, &busy());
        start(&process);
        let all_have = || {
            let mut threads = threads(&process).into_iter();
            threads.all(|(_, seccomp, _)| seccomp == "2").then_some(())
        };
        wait_for("filters", all_have);
        assert_eq!(process.get("/")["state"], "Running");
    }
}

/// The threads that start again would have the filter of the main thread beside their own.
#[test]
fn a_process_with_a_users_filters_makes_no_fork() {
    let all = without("trap", &[]);
    let process = process(&json!({ "vmm": all, "api": all, "vcpu": all }), &busy());
    process.boot();
    process.wait_for("up\n");
    let body = r#"{"api_sock":"api2","metrics_path":"m2"}"#;
    let said = process.refused("PUT", "/snapshot/fork", body);
    let cause = "start the process without --seccomp-filter to fork it";
    assert!(said.contains(cause), "{said}");
    assert!(!process.path("api2").exists() && !process.path("m2").exists());
    assert_eq!(process.get("/")["state"], "Running");
}

#[test]
fn a_call_that_a_filter_refuses_is_told_counted_and_ends_the_process_with_148() {
    let all = without("trap", &[]);
    for (thread, call, number) in [
        ("vcpu", "ioctl", 16),
        ("api", "listen", 50),
        ("vmm", "epoll_pwait", 281),
    ] {
        let mut filters = json!({ "vmm": all, "api": all, "vcpu": all });
        let calls = [
            call,
            if call == "epoll_pwait" {
                "epoll_wait"
            } else {
                call
            },
        ];
        filters[thread] = without("trap", &calls);
        let process = process(&filters, &busy());
        let mut client = process.client();
        if thread == "api" {
            let body = r#"{"guest_cid":3,"uds_path":"v.sock"}"#;
            client.send(
                format!(
                    "PUT /vsock HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
                .as_bytes(),
            );
        } else {
            let body = r#"{"kernel_image_path":"kernel"}"#;
            assert_eq!(client.ask("PUT", "/boot-source", body).status, 204);
            let body = r#"{"action_type":"InstanceStart"}"#;
            // It may end before it answers.
            client.send(
                format!(
                    "PUT /actions HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
                .as_bytes(),
            );
        }
        let metrics = fs::File::open(process.path("m")).unwrap();
        let ended = process.end();
        assert_eq!(ended.status.code(), Some(148), "{ended:?}");
        let numbers = if call == "epoll_pwait" {
            vec![281, 232]
        } else {
            vec![number]
        };
        let told = numbers.iter().any(|number| {
            let line =
                format!("Shutting down VM after intercepting a bad syscall ({number}). It is ");
            ended.stdout.contains(&line)
        });
        assert!(told, "{ended:?}");
        let whose = format!(", of the thread '{thread}'.");
        assert!(ended.stdout.contains(&whose), "{ended:?}");
        let mut text = String::new();
        std::io::Read::read_to_string(&mut &metrics, &mut text).unwrap();
        let faults = text.lines().map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            line["seccomp"]["num_faults"].as_u64().unwrap()
        });
        assert_eq!(faults.sum::<u64>(), 1, "{text}");
    }
}

#[test]
fn a_filter_that_is_bad_is_told_of_and_nothing_starts() {
    let all = without("trap", &[]);
    let with = |names: &[&str]| {
        let filters = names.iter().map(|name| ((*name).to_owned(), all.clone()));
        Value::Object(filters.collect())
    };
    let folder = folder(&short());
    let path = folder.path().to_owned();
    let write = |name: &str, filters: &Value, arch: &str| {
        fs::write(path.join("json"), filters.to_string()).unwrap();
        let made = seccompiler(&path, &["-t", arch, "-i", "json", "-o", name]);
        assert!(made.status.success(), "{made:?}");
    };
    let whole = with(&["vmm", "api", "vcpu"]);
    write("good", &whole, "x86_64");
    write("less", &with(&["vmm", "vcpu"]), "x86_64");
    write("more", &with(&["vmm", "api", "vcpu", "x", "y"]), "x86_64");
    write("arch", &whole, "aarch64");
    fs::write(path.join("text"), "Invalid BPF!").unwrap();
    let good = fs::read(path.join("good")).unwrap();
    fs::write(path.join("short"), &good[..good.len() - 9]).unwrap();
    fs::write(path.join("long"), vec![0; 1 << 20]).unwrap();
    // A jump behind the end, which the kernel refuses.
    let mut programs = vmm_firecracker::seccomp::container::Programs::read(&good).unwrap();
    programs
        .programs
        .insert("api".to_owned(), vec![0x05 | 9 << 32, 6]);
    fs::write(path.join("jump"), programs.to_bytes().unwrap()).unwrap();
    let folder = std::sync::Arc::new(folder);
    for (file, said) in [
        (
            "nowhere",
            "Filter file open error: No such file or directory",
        ),
        (".", "Filter file open error: it is no regular file"),
        (
            "text",
            "Filter deserialization failed: it is no file of seccompiler-bin",
        ),
        (
            "short",
            "Filter deserialization failed: it ends in the middle",
        ),
        (
            "long",
            "Filter deserialization failed: the length of the file is ",
        ),
        (
            "arch",
            "it is for the architecture 0xc00000b7, and this is x86_64",
        ),
        ("less", "Missing Thread Category: api"),
        ("more", "Invalid thread categories: x,y"),
        (
            "jump",
            "the kernel does not take the filter of api: Invalid argument",
        ),
    ] {
        let arguments = ["--seccomp-filter", file, "--api-sock", "api"];
        let command = common::program(folder.path(), &arguments);
        let ended = Process::of(std::sync::Arc::clone(&folder), command).end();
        assert_eq!(ended.status.code(), Some(1), "{file}: {ended:?}");
        let text = format!("Seccomp error: {said}");
        let is_there = |output: &str| output.contains("Seccomp error: ") && output.contains(said);
        assert!(
            is_there(&ended.stdout) && is_there(&ended.stderr),
            "{text}: {ended:?}"
        );
        let _ = fs::remove_file(path.join("api"));
    }
}

#[test]
fn a_start_that_fails_is_followed_by_another_one_with_filters() {
    let process = Process::start(&busy(), &[]);
    process.put("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":64}"#);
    fs::write(process.path("bad"), "no kernel").unwrap();
    for _ in 0..3 {
        process.put("/boot-source", r#"{"kernel_image_path":"bad"}"#);
        process.refused("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    }
    start(&process);
}

#[test]
fn the_compiler_says_what_is_wrong_and_leaves_files_of_others_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let filters = json!({ "vcpu": without("trap", &["ioctl"]) }).to_string();
    fs::write(path.join("good"), &filters).unwrap();
    fs::write(path.join("bad"), filters.replace("ioctl", "nothing")).unwrap();
    fs::write(path.join("long"), vec![b' '; (1 << 20) + 1]).unwrap();
    fs::write(path.join("mine"), "mine").unwrap();
    let run = |arch: &str, input: &str, output: &str| {
        let ran = seccompiler(
            path,
            &[
                "--target-arch",
                arch,
                "--input-file",
                input,
                "--output-file",
                output,
            ],
        );
        (ran.status, String::from_utf8(ran.stderr).unwrap())
    };
    for (arch, input, output, said) in [
        (
            "m68k",
            "good",
            "out",
            "Error: --target-arch m68k: there are x86_64, aarch64 and riscv64\n",
        ),
        (
            "x86_64",
            "nowhere",
            "out",
            "Error: --input-file nowhere: No such file",
        ),
        (
            "x86_64",
            ".",
            "out",
            "Error: --input-file .: it is no regular file",
        ),
        (
            "x86_64",
            "bad",
            "out",
            "Error: --input-file bad: the thread \"vcpu\": ",
        ),
        (
            "x86_64",
            "long",
            "out",
            "Error: --input-file long: it has more than 1048576 bytes",
        ),
        (
            "x86_64",
            "good",
            "good",
            "Error: --output-file good: there is another file",
        ),
        (
            "x86_64",
            "good",
            "mine",
            "Error: --output-file mine: there is another file",
        ),
        (
            "x86_64",
            "good",
            "/dev/null",
            "Error: --output-file /dev/null: it is no regular file",
        ),
        (
            "x86_64",
            "good",
            "nowhere/out",
            "Error: --output-file nowhere/out: No such file",
        ),
    ] {
        let (status, stderr) = run(arch, input, output);
        assert_eq!(
            (status.code(), status.signal()),
            (Some(1), None),
            "{stderr}"
        );
        assert!(stderr.starts_with(said), "{said:?}: {stderr:?}");
        assert!(!path.join("out").exists());
    }
    assert_eq!(fs::read_to_string(path.join("mine")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(path.join("good")).unwrap(), filters);
    // What it has made it makes anew.
    fs::write(path.join("empty"), "").unwrap();
    for arch in ["x86_64", "aarch64", "riscv64"] {
        for output in ["out", "empty"] {
            let (status, stderr) = run(arch, "good", output);
            assert!(status.success(), "{stderr}");
        }
    }
    let ran = seccompiler(
        path,
        &["--target-arch", "X86_64", "--input-file", "good", "--basic"],
    );
    assert!(ran.status.success(), "{ran:?}");
    assert!(path.join("seccomp_binary_filter.out").exists());
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "bad",
        "empty",
        "good",
        "long",
        "mine",
        "out",
        "seccomp_binary_filter.out",
    ];
    assert_eq!(names, expected);
    let ran = seccompiler(path, &["--version"]);
    assert_eq!(ran.stdout, b"seccompiler-bin 1.16.0\n");
}

#[test]
fn a_file_of_the_compiler_keeps_its_owner_its_mode_and_the_links_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let filters = json!({ "vcpu": without("trap", &["ioctl"]) }).to_string();
    fs::write(path.join("json"), &filters).unwrap();
    fs::create_dir(path.join("elsewhere")).unwrap();
    let make = |output: &str| {
        let made = seccompiler(path, &["-t", "x86_64", "-i", "json", "-o", output]);
        assert!(made.status.success(), "{made:?}");
    };
    for name in ["link", "new-link"] {
        symlink(format!("elsewhere/{name}"), path.join(name)).unwrap();
    }
    let target = path.join("elsewhere/link");
    fs::write(&target, "").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).unwrap();
    // Another owner, where this user may have one.
    let owner = match rustix::process::geteuid().is_root() {
        true => (1234, 2345),
        false => {
            let found = fs::metadata(&target).unwrap();
            (found.uid(), found.gid())
        }
    };
    chown(&target, Some(owner.0), Some(owner.1)).unwrap();
    let before = fs::metadata(&target).unwrap().ino();
    make("link");
    make("new-link");
    for name in ["link", "new-link"] {
        assert!(path.join(name).is_symlink());
        assert!(fs::metadata(path.join(name)).unwrap().len() > 100);
    }
    let found = fs::metadata(&target).unwrap();
    assert_eq!((found.uid(), found.gid()), owner);
    assert_eq!(found.mode() & 0o7777, 0o640);
    assert_ne!(found.ino(), before);
    // And nothing else is left.
    assert_eq!(fs::read_dir(path.join("elsewhere")).unwrap().count(), 2);
}

#[test]
fn a_state_that_is_written_where_it_is_is_saved_with_filters() {
    let script = "mount --bind mounted state";
    let Some(process) = mounted(script, &["state", "mounted"]) else {
        return;
    };
    let api = threads(&process);
    let api = api.iter().find(|(name, ..)| name == "fc_api").unwrap();
    assert_eq!(api.1, "2");
    for kind in ["Full", "Diff"] {
        process.put(CREATE, &FULL.replace("Full", kind));
        assert!(fs::metadata(process.path("mounted")).unwrap().len() > 10_000);
    }
}
