//! How long a guest stands still to be forked, how long its fork takes, and what a fork costs.
//!
//! The guest writes to each page of its memory and waits for input. It is forked again and again, and what the VM tells is
//! taken: how long the guest stood still, and after what time the fork's vCPU was let into its guest. Beside it, in turn, the
//! floor: a process with as much memory, one VM and one vCPU, whose registers it saves; it forks, and the child makes a VM
//! and a vCPU over the memory that it has inherited, loads the registers and calls KVM_RUN. Prints medians for several sizes
//! of memory, in small pages and in large ones: `cargo bench --bench fork`.
//!
//! Then the memory that each of 50 forks which do nothing has for itself, and their page tables.

#[path = "../../tests/common/mod.rs"]
mod common;
mod floor;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use common::print;
use serde_json::Value;
use tempfile::TempDir;

const ROUNDS: usize = 20;
const MIB: [u64; 3] = [64, 256, 1024];
const FORKS: usize = 50;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let result = match std::env::var(floor::FLOOR) {
        Ok(what) => floor::run(&what),
        Err(_) => compare().and_then(|()| memory()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fork bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes to each page from 2 MiB to the end of memory, prints a bell and waits for input, for ever.
fn code(mib: u64) -> Vec<u8> {
    let end = u32::try_from(mib << 20).unwrap_or(u32::MAX);
    let mut code = vec![0xbe, 0x00, 0x00, 0x20, 0x00]; // mov esi, 2 MiB
    code.extend([0xff, 0x06]); // next: inc dword [rsi]
    code.extend([0x81, 0xc6, 0x00, 0x10, 0x00, 0x00]); // add esi, 4096
    code.extend([0x81, 0xfe]); // cmp esi, end
    code.extend(end.to_le_bytes());
    code.extend([0x72, 0xf0]); // jb next
    code.extend(print("\x07"));
    code.extend([0x66, 0xba, 0xfd, 0x03]); // mov dx, 0x3fd
    code.extend([0xec, 0xa8, 0x01, 0x74, 0xfb]); // wait: in al, dx; test al, 1; jz wait
    code.extend([0xeb, 0xf9]); // jmp wait
    code
}

/// A VM whose guest has written to all of its memory.
struct Vm {
    child: Child,
    folder: TempDir,
}

impl Vm {
    fn start(mib: u64, pages: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let kernel = common::kernel(&code(mib));
        let mut child = Command::new(common::binary())
            .arg(format!("--kernel={}", kernel.path().display()))
            .arg(format!("--control={}", folder.path().join("c").display()))
            .args([
                &format!("--guest-memory={mib}"),
                &format!("--huge-pages={pages}"),
                "--lean=off",
                "--rng=off",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut byte = [0];
        child
            .stdout
            .as_mut()
            .ok_or("no stdout")?
            .read_exact(&mut byte)?;
        Ok(Self { child, folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A fork of this name; gives what the VM tells of it.
    fn fork(&self, name: &str) -> Result<Value> {
        let new = format!("--control={}", self.path(name).display());
        let said = ctl(&self.path("c"), &["fork", "--json", &new])?;
        Ok(serde_json::from_str(&said)?)
    }
}

impl Vm {
    /// Ends a fork, and waits until it has gone.
    fn stop(&self, name: &str) -> Result<()> {
        let socket = self.path(name);
        ctl(&socket, &["stop"])?;
        while socket.exists() {
            std::thread::yield_now();
        }
        Ok(())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks a machine; gives what `ctl` says.
fn ctl(socket: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(common::binary());
    let output = command.arg("ctl").arg(socket).args(arguments).output()?;
    if output.status.success() {
        Ok(String::from_utf8(output.stdout)?)
    } else {
        Err(String::from_utf8(output.stderr)?.into())
    }
}

/// Milliseconds.
fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or_default() / 1e3
}

fn compare() -> Result<()> {
    println!("milliseconds          parent stands still         first KVM_RUN of the child");
    println!("                      floor    fork    more       floor    fork    more");
    for pages in ["off", "transparent"] {
        for mib in MIB {
            let vm = Vm::start(mib, pages)?;
            let mut floor = floor::Process::start(mib, pages)?;
            let mut all: [Vec<f64>; 4] = Default::default();
            for _ in 0..ROUNDS {
                let forked = vm.fork("n")?;
                vm.stop("n")?;
                let us = |name: &str| forked[name].as_f64().ok_or("no time");
                let (still, ready) = floor.fork()?;
                for (samples, us) in
                    all.iter_mut()
                        .zip([still, us("still_us")?, ready, us("ready_us")?])
                {
                    samples.push(us);
                }
            }
            let [still, forked_still, ready, forked_ready] = all.each_mut().map(|it| median(it));
            println!(
                "{mib:5} MiB {pages:11} {still:6.2}  {forked_still:6.2}  {:6.2}      {ready:6.2}  {forked_ready:6.2}  {:6.2}",
                forked_still - still,
                forked_ready - ready
            );
        }
    }
    Ok(())
}

/// Of a file below /proc, the sum of lines that begin so, in KiB.
fn kib(text: &str, names: &[&str]) -> u64 {
    let lines = text
        .lines()
        .filter(|line| names.iter().any(|name| line.starts_with(name)));
    let numbers =
        lines.filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
    numbers.sum()
}

fn memory() -> Result<()> {
    let vm = Vm::start(64, "off")?;
    let (mut private, mut tables) = (Vec::new(), Vec::new());
    let mut pids = Vec::new();
    for number in 0..FORKS {
        let forked = vm.fork(&format!("n{number}"))?;
        pids.push(forked["pid"].as_u64().ok_or("no process")?);
    }
    for pid in pids {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        private.push(kib(&rollup, &["Private_Clean:", "Private_Dirty:"]));
        tables.push(kib(&status, &["VmPTE:"]));
    }
    for number in 0..FORKS {
        vm.stop(&format!("n{number}"))?;
    }
    private.sort_unstable();
    tables.sort_unstable();
    println!(
        "\n{FORKS} forks of 64 MiB: private memory {} KiB each (median; most {}), page tables {} KiB",
        private[FORKS / 2],
        private[FORKS - 1],
        tables[FORKS / 2]
    );
    Ok(())
}

/// Lines of a process that does what it is told.
struct Talk {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Talk {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        Ok(Self { child, lines })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(line)
    }

    fn ask(&mut self) -> Result<String> {
        self.child
            .stdin
            .as_mut()
            .ok_or("no stdin")?
            .write_all(b"\n")?;
        self.line()
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
