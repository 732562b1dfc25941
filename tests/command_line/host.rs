//! What the VMM says about the host: `doctor`, and cures that fit what the host refuses.

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use crate::common::{Ended, binary, finish, run_code, vmm};
use serde_json::Value;

/// `xorps xmm0, xmm0` with SSE switched on, which every processor knows, then a reset.
fn sse() -> Vec<u8> {
    // mov rax, cr4; or rax, OSFXSR; mov cr4, rax; xorps xmm0, xmm0
    let mut code = vec![0x0f, 0x20, 0xe0, 0x48, 0x0d, 0, 2, 0, 0, 0x0f, 0x22, 0xe0];
    code.extend([0x0f, 0x57, 0xc0]);
    code.extend(crate::common::RESET);
    code
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

#[test]
fn doctor_finds_out_how_this_host_runs_a_guests_kernel() {
    if std::env::consts::ARCH != "x86_64" {
        return;
    }
    let ended = run_code(&sse(), &["--sandbox=off"]);
    let runs = ended.status.code() == Some(0);
    let cure = "cure: this host's KVM interprets kernel code and does not know this instruction; `vmm-reference doctor`";
    assert!(runs || ended.stderr.contains(cure), "{ended:?}");
    // From inside a sandbox it cannot look.
    let ended = run_code(&sse(), &[]);
    let cure = "`vmm-reference doctor` checks which kind of host this is";
    assert!(runs || ended.stderr.contains(cure), "{ended:?}");
    let ended = finish(vmm(&["doctor"]).spawn().unwrap());
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let mut lines = ended.stdout.lines();
    let line = lines
        .find(|line| line.contains("guest kernel code"))
        .unwrap();
    if runs {
        assert_eq!(line, "ok    guest kernel code: runs natively");
    } else {
        assert!(line.starts_with("WARN  guest kernel code: this host interprets it: about "));
        assert!(
            line.contains(" times slower than its own; kernels that use "),
            "{line}"
        );
        assert!(
            line.contains(" fail with KVM internal error, suberror 1"),
            "{line}"
        );
        assert!(lines.next().unwrap().starts_with("      cure: "));
    }
}

#[test]
fn doctor_has_an_object_for_programs() {
    let ended = finish(vmm(&["doctor", "--json"]).spawn().unwrap());
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let found = json(&ended);
    assert_eq!(found["can_run_vms"], true);
    let checks = found["checks"].as_object().unwrap();
    for name in [
        "dev_kvm",
        "kvm_api",
        "kvm_capabilities",
        "platform",
        "machine",
        "dev_net_tun",
        "huge_pages",
        "transparent_huge_pages",
        "user_namespaces",
        "limit_open_files",
        "limit_address_space",
        "limit_processes",
        "limit_locked_memory",
        "landlock",
    ] {
        let check = &checks[name];
        assert!(
            ["ok", "warn"].contains(&check["level"].as_str().unwrap()),
            "{name}: {check}"
        );
        assert!(!check["found"].as_str().unwrap().is_empty());
        assert_eq!(check["cure"].is_string(), check["level"] != "ok", "{name}");
    }
}

/// The VMM started by one of util-linux' programs.
fn under(program: &str, options: &[&str], arguments: &[&str]) -> Ended {
    let mut command = Command::new(program);
    command.args(options).arg(binary()).args(arguments);
    finish(quiet(&mut command).spawn().unwrap())
}

fn quiet(command: &mut Command) -> &mut Command {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
}

#[test]
fn r72_a_limit_of_the_address_space_is_named_where_ram_does_not_fit_into_it() {
    let limit = "--as=536870912";
    let ended = under("prlimit", &[limit], &["--guest-memory=1024"]);
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    for text in [
        "--guest-memory=1024M: ",
        "cure: this process may have 512 MiB of address space",
    ] {
        assert!(ended.stderr.contains(text), "{text}: {ended:?}");
    }
    // Stacks count too: of RAM that just fits, nothing is left for 200 threads.
    let ended = under("prlimit", &[limit], &["--vcpus=200"]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    for text in [
        "cannot start the thread of vCPU ",
        "cure: raise the limit of the address space",
    ] {
        assert!(ended.stderr.contains(text), "{text}: {ended:?}");
    }
    let ended = under("prlimit", &[limit], &["doctor", "--json"]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let check = &json(&ended)["checks"]["limit_address_space"];
    assert_eq!(check["level"], "warn");
    assert!(check["found"].as_str().unwrap().starts_with("512 MiB"));
}

#[test]
fn r72_too_few_files_are_named_wherever_they_run_out() {
    let mut codes = Vec::new();
    for files in 5..48 {
        let limit = format!("--nofile={files}");
        let ended = under("prlimit", &[&limit], &["--vcpus=4"]);
        if ended.stderr.contains("loading shared libraries") {
            continue;
        }
        let code = ended.status.code();
        if code != Some(0) {
            assert_eq!(code, Some(1), "{files}: {ended:?}");
            assert!(
                ended
                    .stderr
                    .contains("  cure: raise the limit of open files"),
                "{files}: {ended:?}"
            );
        }
        codes.push(code);
    }
    assert!(
        codes.starts_with(&[Some(1)]) && codes.ends_with(&[Some(0)]),
        "{codes:?}"
    );
}

fn is_root() -> bool {
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        eprintln!("SKIPPED: only root can change /dev and its user");
    }
    root
}

/// The VMM in a /dev of its own that `prepare` makes, as `user`, with what `limits` says.
fn in_own_dev(prepare: &str, user: u32, limits: &str, arguments: &str) -> Ended {
    // The program is copied to where that user can read it, by a process that starts none meanwhile: one that is
    // open for writing cannot be executed.
    let script = format!(
        "mount -t tmpfs -o mode=755 tmpfs /dev && mknod -m 666 /dev/null c 1 3 && {prepare} && \
         cp {} /dev/vmm && exec setpriv --reuid={user} --regid={user} --clear-groups prlimit {limits} /dev/vmm \
         {arguments}",
        binary().display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    command.env_remove("container");
    finish(quiet(&mut command).spawn().unwrap())
}

/// A user that nobody is.
const USER: u32 = 54_321;

#[test]
fn who_may_not_open_kvm_is_told_whose_it_is_and_what_to_do() {
    if !is_root() {
        return;
    }
    for (mode, group, texts) in [
        ("600", "0", ["root:root with mode 0600", "so only root may"]),
        (
            "660",
            "12345",
            ["root:12345 with mode 0660", "usermod -aG 12345"],
        ),
    ] {
        let prepare = format!("mknod -m {mode} /dev/kvm c 10 232 && chgrp {group} /dev/kvm");
        for arguments in ["", "doctor"] {
            let ended = in_own_dev(&prepare, USER, "", arguments);
            assert_eq!(ended.status.code(), Some(1), "{ended:?}");
            let said = format!("{}{}", ended.stdout, ended.stderr);
            for text in texts {
                assert!(said.contains(text), "{text}: {said}");
            }
            assert!(said.contains("Permission denied"), "{said}");
        }
    }
    let ended = in_own_dev("true", 0, "", "doctor");
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(
        ended
            .stdout
            .contains("FAIL  /dev/kvm: /dev/kvm cannot be used: No such file"),
        "{ended:?}"
    );
    assert!(ended.stdout.contains("      cure: "), "{ended:?}");
    // The others are looked at all the same.
    assert!(
        ended.stdout.contains("WARN  /dev/net/tun: No such file"),
        "{ended:?}"
    );
    assert!(ended.stdout.contains("--device /dev/net/tun"), "{ended:?}");
}

#[test]
fn r72_the_thread_that_the_host_refuses_is_named() {
    if !is_root() {
        return;
    }
    let prepare = "mknod -m 666 /dev/kvm c 10 232";
    // The main thread and that of rng0 come first. The limit is the user's, so no other test runs as this one.
    for (limit, what) in [
        ("--nproc=1", "cannot make the device rng0"),
        ("--nproc=3", "cannot start the thread of vCPU 1"),
    ] {
        let ended = in_own_dev(prepare, USER + 1, limit, "--vcpus=3");
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        for text in [
            &format!("{what}: Resource temporarily unavailable"),
            "cure: raise the limit of threads and processes (`ulimit -u`",
        ] {
            assert!(ended.stderr.contains(text), "{text}: {ended:?}");
        }
    }
}

/// The names of checks that `doctor` found wrong, and their cures.
fn failed(ended: &Ended) -> Vec<(String, String)> {
    let found = json(ended);
    let checks = found["checks"].as_object().unwrap().iter();
    let failed: Vec<_> = checks
        .filter(|(_, check)| check["level"] == "fail")
        .map(|(name, check)| (name.clone(), check["cure"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(found["can_run_vms"], failed.is_empty(), "{ended:?}");
    let status = i32::from(!failed.is_empty());
    assert_eq!(ended.status.code(), Some(status), "{ended:?}");
    failed
}

#[test]
fn r72_doctor_says_which_limit_keeps_vms_from_running() {
    let doctor = ["doctor", "--json"];
    // As for a VM, the soft limit is raised.
    let soft = under("prlimit", &["--nofile=5:4096"], &doctor);
    assert_eq!(failed(&soft), []);
    for files in 4..40 {
        let limit = format!("--nofile={files}");
        let ended = under("prlimit", &[&limit], &doctor);
        if ended.stderr.contains("loading shared libraries") {
            continue;
        }
        let failed = failed(&ended);
        let named = failed.iter().any(|(name, _)| name == "limit_open_files");
        assert_eq!(named, files < 32, "{files}: {failed:?}");
        for (name, cure) in &failed {
            assert!(cure.contains("raise the limit"), "{files}: {name}: {cure}");
        }
        let io_uring = &json(&ended)["checks"]["io_uring"];
        if io_uring["found"]
            .as_str()
            .is_some_and(|found| found.contains("open files"))
        {
            let cure = io_uring["cure"].as_str().unwrap();
            assert!(cure.contains("raise the limit of open files"), "{cure}");
        }
    }
    for mib in [24, 32, 40, 48, 56, 64] {
        let limit = format!("--as={}", mib << 20);
        let ended = under("prlimit", &[&limit], &doctor);
        if ended.stderr.contains("loading shared libraries") {
            continue;
        }
        for (name, cure) in failed(&ended) {
            assert!(cure.contains("address space"), "{mib}: {name}: {cure}");
        }
    }
    if !is_root() {
        return;
    }
    let prepare = "mknod -m 666 /dev/kvm c 10 232";
    for processes in [1, 2] {
        let limit = format!("--nproc={processes}");
        let ended = in_own_dev(prepare, USER + 2, &limit, "doctor --json");
        for (name, cure) in failed(&ended) {
            assert!(cure.contains("ulimit -u"), "{processes}: {name}: {cure}");
        }
        // Of two threads, KVM may want the second for itself.
        let failed = failed(&ended);
        assert!(processes > 1 || failed.len() == 1, "{failed:?}");
    }
}
