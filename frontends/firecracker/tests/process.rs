//! What the process does beside its API: command line, configuration files, logs, metrics, the boot timer, signals.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;

use common::{Process, busy, folder, print, short, wait_for};
use serde_json::{Value, json};

/// Runs it to its end.
fn run(arguments: &[&str]) -> common::Ended {
    Process::spawn(folder(&short()), arguments).end()
}

#[test]
fn what_it_is_asked_first_it_answers_first() {
    let ended = run(&["--version"]);
    assert_eq!(ended.status.code(), Some(0));
    let mut lines = ended.stdout.lines();
    assert_eq!(lines.next(), Some("Firecracker v1.16.0"));
    assert!(lines.next().unwrap().starts_with("vmm-reference v"));
    let ended = run(&["--help", "--nonsense"]);
    assert_eq!(ended.status.code(), Some(0));
    assert!(ended.stdout.contains("--config-file FILE"));
    for (arguments, status) in [
        (&["--nonsense"][..], 153),
        (&["--no-api"], 153),
        (&["--id", "a_b"], 153),
        (&["--level", "loud"], 152),
        (&["--log-path", "/nowhere/log"], 1),
        (&["--metrics-path", "/nowhere/metrics"], 1),
        (&["--no-api", "--config-file", "nowhere"], 1),
        (&["--seccomp-filter", "filter"], 1),
    ] {
        let ended = run(arguments);
        assert_eq!(
            ended.status.code(),
            Some(status),
            "{arguments:?}: {ended:?}"
        );
        assert!(ended.stderr.starts_with("Error: "), "{ended:?}");
        let line = format!("Firecracker exiting with error. exit_code={status}");
        assert!(ended.stdout.contains(&line), "{ended:?}");
    }
}

fn config(more: &Value) -> String {
    let mut config = json!({
        "boot-source": { "kernel_image_path": "kernel", "boot_args": "console=ttyS0 reboot=k" },
        "drives": [{
            "drive_id": "rootfs", "path_on_host": "disk", "is_root_device": true, "is_read_only": true,
        }],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 64 },
        "a-key-of-somebody-else": 1,
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config.to_string()
}

#[test]
fn a_file_configures_a_machine_that_starts_at_once() {
    let folder = folder(&short());
    fs::write(folder.path().join("c.json"), config(&json!({}))).unwrap();
    let ended = Process::spawn(folder, &["--no-api", "--config-file", "c.json"]).end();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.guest().contains("hello\n"), "{ended:?}");
    let line = "Successfully started microvm that was configured from one single json";
    assert!(ended.stdout.contains(line), "{ended:?}");
}

#[test]
fn a_machine_of_a_file_has_an_api_too() {
    let folder = folder(&busy());
    let metrics = folder.path().join("metrics");
    let more = json!({
        "logger": { "log_path": "log", "level": "debug", "show_level": true, "show_log_origin": true },
        "metrics": { "metrics_path": metrics },
        "balloon": { "amount_mib": 0, "deflate_on_oom": true },
        "vsock": { "guest_cid": 3, "uds_path": "v.sock" },
        "entropy": {},
    });
    fs::write(folder.path().join("c.json"), config(&more)).unwrap();
    let process = Process::spawn(folder, &["--api-sock", "api", "--config-file", "c.json"]);
    wait_for("the socket", || process.path("api").exists().then_some(()));
    assert_eq!(process.get("/")["state"], "Running");
    process.wait_for("up\n");
    let shown = process.get("/vm/config");
    assert_eq!(
        shown["vsock"],
        json!({ "guest_cid": 3, "uds_path": "v.sock" })
    );
    assert_eq!(shown["drives"][0]["io_engine"], "Sync");
    assert_eq!(shown["logger"], Value::Null);
    assert!(process.path("v.sock").exists());
    process.put("/actions", r#"{"action_type":"FlushMetrics"}"#);
    let text = fs::read_to_string(&metrics).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [first, line] = &lines[..] else {
        panic!("{text}")
    };
    // The first line may be older than the request.
    let asked = |line: &Value| line["get_api_requests"]["instance_info_count"].as_u64();
    assert_eq!(asked(first).zip(asked(line)).map(|(a, b)| a + b), Some(1));
    assert!(line["vcpu"]["exit_io_out"].as_u64() > Some(0), "{line}");
    assert!(line["block_rootfs"]["read_count"].is_number(), "{line}");
    let log = fs::read_to_string(process.path("log")).unwrap();
    let has = |text: &str| log.lines().any(|line| line.contains(text));
    assert!(has(":fc_api:INFO:") && has(".rs:"), "{log}");
}

#[test]
fn a_file_that_is_wrong_is_status_1_and_says_where() {
    for (text, cause) in [
        ("{", "Invalid JSON: EOF"),
        ("{}", "missing field `drives`"),
        (
            r#"{"drives":[],"boot-source":{"kernel_image_path":"none"}}"#,
            "The kernel file cannot be opened: No such file or directory (os error 2)",
        ),
        (
            r#"{"drives":[],"boot-source":{"kernel_image_path":"disk"}}"#,
            "Could not Start MicroVM from one single json: ",
        ),
        (
            &config(&json!({ "mmds-config": { "network_interfaces": ["1"] } })),
            "MMDS config error: The list of network interface IDs provided contains",
        ),
    ] {
        let folder = folder(&short());
        fs::write(folder.path().join("c.json"), text).unwrap();
        let ended = Process::spawn(folder, &["--no-api", "--config-file", "c.json"]).end();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(cause), "{text}: {ended:?}");
    }
}

#[test]
fn the_boot_timer_is_at_the_beginning_of_the_window_also_with_other_devices() {
    // mov rbx, 0xc0000000 (below 4 GiB, mapped by the boot page tables); mov byte [rbx], 123
    let mut code = vec![0xbb, 0, 0, 0, 0xc0, 0xc6, 0x03, 123];
    code.extend(short());
    for pci in [&["--boot-timer"][..], &["--boot-timer", "--enable-pci"]] {
        let process = Process::start(&code, pci);
        let drive = r#"{"drive_id":"a","is_root_device":true,"path_on_host":"disk"}"#;
        process.put("/drives/a", drive);
        process.boot();
        let ended = process.end();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        let line = ended
            .stdout
            .lines()
            .find(|line| line.contains("Guest-boot-time = "));
        let line = line.unwrap_or_else(|| panic!("{ended:?}"));
        assert!(
            line.contains(" CPU us ") && line.ends_with(" CPU ms"),
            "{line}"
        );
    }
}

#[test]
fn metrics_are_deltas_and_the_last_line_comes_at_the_end() {
    let mut code = print("hi");
    code.extend(common::echo());
    let folder = folder(&code);
    let mut command = common::program(folder.path(), &["--api-sock", "api"]);
    command.stdin(std::process::Stdio::piped());
    let mut process = Process::of(folder, command);
    wait_for("the socket", || process.path("api").exists().then_some(()));
    let body = r#"{"metrics_path":"m","emit_id":true,"properties":{"a":"b"}}"#;
    process.put("/metrics", body);
    let said = process.refused("PUT", "/metrics", body);
    assert!(
        said.contains("Reinitialization of metrics not allowed."),
        "{said}"
    );
    process.boot();
    process.wait_for("hi");
    for _ in 0..2 {
        process.put("/actions", r#"{"action_type":"FlushMetrics"}"#);
    }
    std::io::Write::write_all(&mut process.stdin(), b"q").unwrap();
    let metrics = process.path("m");
    let kept = fs::File::open(&metrics).unwrap();
    let ended = process.end();
    assert_eq!(ended.status.code(), Some(0));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut &kept, &mut text).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [start, first, second, last] = &lines[..] else {
        panic!("{text}")
    };
    // It came before the start was answered.
    assert_eq!(start["put_api_requests"]["actions_count"], 1);
    assert_eq!(start["put_api_requests"]["metrics_count"], 2);
    assert_eq!(start["vcpu"]["exit_io_out"], 0);
    assert_eq!(first["id"], "anonymous-instance");
    assert_eq!(first["properties"]["a"], "b");
    assert_eq!(second["put_api_requests"]["metrics_count"], 0);
    // Two bytes were printed before, one and a reset after.
    assert!(first["vcpu"]["exit_io_out"].as_u64() >= Some(2), "{text}");
    assert_eq!(last["vcpu"]["exit_io_out"], 2, "{text}");
}

#[test]
fn signals_end_it_with_statuses_of_their_own() {
    for (signal, status, key) in [
        (libc::SIGBUS, 149, "sigbus"),
        (libc::SIGSEGV, 150, "sigsegv"),
        (libc::SIGXFSZ, 151, "sigxfsz"),
        (libc::SIGXCPU, 154, "sigxcpu"),
        (libc::SIGPIPE, 155, "sigpipe"),
        (libc::SIGHUP, 156, "sighup"),
        (libc::SIGILL, 157, "sigill"),
        (libc::SIGSYS, 2, ""),
    ] {
        let process = Process::start(&busy(), &["--metrics-path", "m"]);
        process.boot();
        process.signal(signal);
        let metrics = fs::File::open(process.path("m")).unwrap();
        let ended = process.end();
        assert_eq!(ended.status.code(), Some(status), "{ended:?}");
        let line = format!("Shutting down VM after intercepting signal {signal}, code ");
        assert!(ended.stdout.contains(&line), "{ended:?}");
        let mut text = String::new();
        std::io::Read::read_to_string(&mut &metrics, &mut text).unwrap();
        let told: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        if !key.is_empty() {
            assert_eq!(told["signals"][key], 1, "{told}");
        }
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let process = Process::start(&busy(), &[]);
        process.boot();
        process.signal(signal);
        let ended = process.end();
        assert_eq!(ended.status.signal(), Some(signal), "{ended:?}");
    }
}

#[test]
fn threads_have_the_names_that_clients_look_for() {
    let process = Process::start(&busy(), &[]);
    process.put("/machine-config", r#"{"vcpu_count":2,"mem_size_mib":64}"#);
    process.boot();
    let tasks = format!("/proc/{}/task", process.pid());
    let has = |name: &str| {
        let mut tasks = fs::read_dir(&tasks).unwrap();
        tasks.any(|task| {
            let comm = fs::read_to_string(task.unwrap().path().join("comm"));
            comm.is_ok_and(|comm| comm.trim_end() == name)
        })
    };
    // A thread gives itself its name.
    for name in ["firecracker", "fc_api", "fc_vcpu 0", "fc_vcpu 1"] {
        wait_for(name, || has(name).then_some(()));
    }
}

#[test]
fn the_serial_console_goes_to_a_file_and_logs_to_another() {
    let process = Process::start(&short(), &["--log-path", "log"]);
    process.put("/serial", r#"{"serial_out_path":"serial"}"#);
    process.put("/logger", r#"{"level":"Warning","show_level":true}"#);
    assert!(
        process
            .refused("PUT", "/logger", r#"{"log_path":"/nowhere/x"}"#)
            .contains("os error 2")
    );
    process.boot();
    let serial = process.path("serial");
    wait_for("the output", || {
        (fs::read_to_string(&serial).ok()? == "hello\n").then_some(())
    });
    let folder = process.folder.path().to_owned();
    let log = fs::read_to_string(folder.join("log")).unwrap();
    // Nothing was worth a warning but the request that was refused, which is no warning either at the level Error.
    assert!(log.contains("Listening on API socket"), "{log}");
    assert!(
        log.contains(
            ":ERROR] Received Error. Status code: 400 Bad Request. Message: Logger error: "
        ),
        "{log}"
    );
    assert!(!log.contains("InstanceStart"), "{log}");
    let ended = process.end();
    assert_eq!(
        (ended.status.code(), &*ended.stdout),
        (Some(0), ""),
        "{ended:?}"
    );
}

/// A FIFO without a reader is fine, and what it does not take is counted.
#[test]
fn logs_and_metrics_go_to_fifos() {
    let folder = folder(&busy());
    for name in ["log", "metrics"] {
        let path = folder.path().join(name);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
    }
    let all = [
        "--api-sock",
        "api",
        "--log-path",
        "log",
        "--metrics-path",
        "metrics",
    ];
    let process = Process::spawn(folder, &all);
    wait_for("the socket", || process.path("api").exists().then_some(()));
    // More than a pipe holds.
    for _ in 0..800 {
        assert_eq!(process.ask("GET", "/version", "").status, 200);
    }
    process.boot();
    let metrics = process.path("metrics");
    let reader = std::thread::spawn(move || {
        use std::io::BufRead;
        let mut line = String::new();
        std::io::BufReader::new(fs::File::open(metrics).unwrap())
            .read_line(&mut line)
            .unwrap();
        serde_json::from_str::<Value>(&line).unwrap()
    });
    process.put("/actions", r#"{"action_type":"FlushMetrics"}"#);
    let line = reader.join().unwrap();
    assert!(
        line["logger"]["missed_log_count"].as_u64() > Some(0),
        "{line}"
    );
    assert_eq!(line["get_api_requests"]["vmm_version_count"], 800);
}
