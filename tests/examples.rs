//! The examples do what docs/library.md says of them.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{RESET, echo, finish, kernel, print};

/// Runs an example and gives what it printed.
fn example(name: &str, arguments: &[&str]) -> String {
    // target/debug/deps/this-test: `cargo test` without a choice of targets has built them beside it.
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    let path: PathBuf = path.join("examples").join(name);
    assert!(path.is_file(), "{}: cargo build --examples", path.display());
    let child = Command::new(path)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ended = finish(child);
    assert_eq!(ended.status.code(), Some(0), "{name}: {ended:?}");
    ended.stdout
}

/// That all of these texts are in an example's output, in this order.
fn says(name: &str, code: Option<&[u8]>, more: &[&str], texts: &[&str]) {
    let kernel = code.map(kernel);
    let path = kernel
        .as_ref()
        .map(|file| file.path().display().to_string());
    let mut arguments: Vec<&str> = path.as_deref().into_iter().collect();
    arguments.extend(more);
    let said = example(name, &arguments);
    let mut rest = said.as_str();
    for text in texts {
        rest = match rest.split_once(text) {
            Some((_, rest)) => rest,
            None => panic!("{name}: {text:?} is not where it should be in: {said}"),
        };
    }
}

#[test]
fn minimal_boots_the_built_in_guest() {
    says("minimal", None, &[], &["hello from vmm-reference"]);
}

#[test]
fn two_vms_run_in_one_process() {
    let texts = [
        "first: the guest ",
        "first said: hello from vmm-reference",
        "1 vCPUs",
        "second: the guest ",
        "second said: hello from vmm-reference",
        "2 vCPUs",
    ];
    says("two_vms", None, &[], &texts);
}

#[test]
fn serial_buffer_types_and_reads_what_is_printed() {
    let texts = ["it has printed 7 bytes", "hello q"];
    says("serial_buffer", Some(&echo()), &["hello q"], &texts);
}

#[test]
fn stop_in_time_ends_a_guest_that_does_not_listen() {
    let texts = ["asked to power off", "it was asked to end"];
    says("stop_in_time", Some(&[0xeb, 0xfe]), &["0"], &texts);
    says("stop_in_time", None, &[], &["the guest "]);
}

#[test]
fn errors_have_their_value_and_the_host_s_own_error() {
    let texts = [
        "no vCPUs: vcpus=0: ",
        "decision: change vcpus, which is \"0\"",
        "no kernel there: kernel=/nowhere/vmlinuz: No such file",
        "decision: kernel names nothing",
        "cure: ",
        "source: No such file",
        "a program as a kernel: kernel=/proc/self/exe: ",
        "decision: kernel is no file that boots here",
        "no disk there: blk[0].path=/nowhere/disk: ",
        "decision: blk[0].path names nothing",
        "a folder as a disk: blk[0].path=/: it is a directory",
        "decision: blk[0].path cannot be used: IsADirectory",
    ];
    says("errors", None, &[], &texts);
}

#[test]
fn crash_has_the_vcpu_the_cause_and_the_report() {
    let code = [print("last words"), vec![0x0f, 0x0b]].concat();
    let texts = [
        "it crashed on vCPU 0",
        "it had no handler for an exception",
        "rip 00000000001000",
        "last console output:\nlast words",
    ];
    says("crash", Some(&code), &[], &texts);
    says("crash", None, &[], &["the guest "]);
}

#[test]
fn pause_asks_a_running_machine() {
    let path = kernel(&RESET);
    let path = path.path().display().to_string();
    example("pause", &[&path]);
}

#[test]
fn own_device_counts() {
    // mov ebx, 0xf0000000; mov ecx, 12; l: mov [rbx], eax; loop l
    let code = [
        0xbb, 0, 0, 0, 0xf0, 0xb9, 12, 0, 0, 0, 0x89, 0x03, 0xe2, 0xfc,
    ];
    let code = [&code[..], &RESET].concat();
    says("own_device", Some(&code), &[], &["it has written 12 times"]);
    says(
        "own_device",
        None,
        &[],
        &["hello from", "it has written 0 times"],
    );
}

#[test]
#[cfg(all(feature = "snapshot", target_arch = "x86_64"))]
fn a_vm_becomes_two() {
    // Both print to one pipe.
    let spin = [0xeb, 0xfe];
    says(
        "fork",
        Some(&spin),
        &[],
        &["parent: Forked(", "parent: it was asked to end"],
    );
    says("fork", Some(&spin), &[], &["fork: it was asked to end"]);
}
