//! How long the API takes to answer, and how long a life through it takes.
//!
//! One client asks for the state, and pauses and resumes, a machine whose guest halts and one whose guest leaves it all
//! the time. Then machines come and go, each configured and started by requests, until their guests reset; what they
//! leave in their folder is counted. `VMM_BENCH_PEER_FIRECRACKER=/path/to/firecracker` puts another program beside ours,
//! in turns; `VMM_TEST_BINARY` measures another build of ours. Prints medians and the 99th of a hundred: `cargo bench -p vmm-firecracker --bench api [-- LIVES]`.

#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::ffi::OsString;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Client, Process, busy, folder, print, short, wait_for};

const ASKED: usize = 2000;
const LIVES: usize = 100;
const BOOT: &str = r#"{"kernel_image_path":"kernel","boot_args":"console=ttyS0"}"#;
const START: &str = r#"{"action_type":"InstanceStart"}"#;

fn program(name: &OsString, folder: &std::path::Path, socket: &str) -> Command {
    let mut command = Command::new(name);
    command
        .args(["--api-sock", socket, "--no-seccomp", "--level", "Error"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The median and the 99th of a hundred, in microseconds.
fn shown(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_micros();
    format!("{:>7} us, {:>7} us", at(50), at(99))
}

fn timed(times: &mut Vec<Duration>, act: impl FnOnce()) {
    let begun = Instant::now();
    act();
    times.push(begun.elapsed());
}

fn answers(name: &OsString, code: &[u8]) -> [String; 2] {
    let folder = folder(code);
    let command = program(name, folder.path(), "api");
    let process = Process::of(folder, command);
    wait_for("the socket", || process.path("api").exists().then_some(()));
    process.put("/boot-source", BOOT);
    process.put("/actions", START);
    process.wait_for("up");
    let mut client = process.client();
    let (mut state, mut pause) = (Vec::new(), Vec::new());
    for _ in 0..ASKED {
        timed(&mut state, || {
            assert_eq!(client.ask("GET", "/", "").status, 200);
        });
    }
    for number in 0..ASKED / 10 {
        let to = if number % 2 == 0 { "Paused" } else { "Resumed" };
        let body = format!(r#"{{"state":"{to}"}}"#);
        timed(&mut pause, || {
            assert_eq!(client.ask("PATCH", "/vm", &body).status, 204);
        });
    }
    [shown(state), shown(pause)]
}

/// From the spawn to the end of the process.
fn life(name: &OsString, path: &std::path::Path, number: usize) {
    let socket = format!("api{number}");
    let mut command = program(name, path, &socket);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the socket", || path.join(&socket).exists().then_some(()));
    let mut client = Client::connect(&path.join(&socket));
    assert_eq!(client.ask("PUT", "/boot-source", BOOT).status, 204);
    assert_eq!(client.ask("PUT", "/actions", START).status, 204);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    fs::remove_file(path.join(&socket)).unwrap();
}

fn main() {
    if !cfg!(target_arch = "x86_64") {
        eprintln!("api bench: its guests are programs for x86_64");
        return;
    }
    let own = std::env::var_os("VMM_TEST_BINARY");
    let own = own.unwrap_or_else(|| env!("CARGO_BIN_EXE_firecracker").into());
    let mut programs = vec![own];
    programs.extend(std::env::var_os("VMM_BENCH_PEER_FIRECRACKER"));
    // `hlt; jmp`
    let halts = [print("up\n"), vec![0xf4, 0xeb, 0xfd]].concat();
    println!("{:42}{:>10}{:>12}", "", "median", "99 of 100");
    for (guest, code) in [("halts", &halts), ("leaves all the time", &busy())] {
        for name in &programs {
            let [state, pause] = answers(name, code);
            println!("GET /, guest {guest:<20} {state}  {}", name.display());
            println!("PATCH /vm, guest {guest:<16} {pause}  {}", name.display());
        }
    }
    let mut arguments = std::env::args().skip(1);
    let lives = arguments
        .find_map(|word| word.parse().ok())
        .unwrap_or(LIVES);
    let folder = folder(&short());
    let mut times = vec![Vec::new(); programs.len()];
    for number in 0..lives {
        for (name, times) in programs.iter().zip(&mut times) {
            timed(times, || life(name, folder.path(), number));
        }
    }
    for (name, times) in programs.iter().zip(times) {
        println!(
            "a life of {lives:<27}      {}  {}",
            shown(times),
            name.display()
        );
    }
    let left = fs::read_dir(folder.path()).unwrap().count();
    println!("files left: {}", left - 2);
}
