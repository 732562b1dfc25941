//! The VMMs that the guest runs on.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::common::{binary, signal};
use crate::compare::{Case, Result, Sample};
use crate::floor::Cpu;

/// No run takes longer.
const WATCHDOG: Duration = Duration::from_secs(180);

/// What is counted while the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    Cpu,
    Calls,
}

/// System calls by name.
pub(crate) type Calls = BTreeMap<String, u64>;

#[derive(Debug)]
enum Kind {
    Ours { mmio: u64 },
    Firecracker,
}

/// A VMM with a disk.
#[derive(Debug)]
pub(crate) struct Vmm {
    pub(crate) name: String,
    kind: Kind,
    binary: PathBuf,
    guest: PathBuf,
    disk: PathBuf,
    engine: String,
    /// The name of the thread that does the disk's work.
    thread: &'static str,
}

/// Where our VMM puts its disk.
fn address(disk: &str) -> Result<u64> {
    let plan = Command::new(binary())
        .args(["plan", "--json", disk])
        .output()?;
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout)?;
    let devices = plan["devices"].as_array().ok_or("a plan without devices")?;
    devices
        .iter()
        .find(|device| device["kind"]["virtio-mmio"] == "block")
        .and_then(|device| device["range"]["base"].as_u64())
        .ok_or_else(|| "a plan without a disk".into())
}

impl Vmm {
    pub(crate) fn ours(guest: &Path, disk: &Path, engine: &str) -> Result<Self> {
        Ok(Self {
            name: engine.to_owned(),
            kind: Kind::Ours {
                mmio: address(&format!("--blk={}", disk.display()))?,
            },
            binary: binary().into(),
            guest: guest.to_owned(),
            disk: disk.to_owned(),
            engine: engine.to_owned(),
            thread: "virtio-blk",
        })
    }

    pub(crate) fn firecracker(binary: &Path, guest: &Path, disk: &Path, engine: &str) -> Self {
        Self {
            name: format!("firecracker {engine}"),
            kind: Kind::Firecracker,
            binary: binary.to_owned(),
            guest: guest.to_owned(),
            disk: disk.to_owned(),
            engine: engine.to_owned(),
            thread: "firecracker",
        }
    }

    fn command(&self, cmdline: &str) -> Result<Command> {
        let mut command = Command::new(&self.binary);
        match self.kind {
            Kind::Ours { mmio } => command
                .arg(format!("--kernel={}", self.guest.display()))
                .arg(format!(
                    "--blk=path={},engine={}",
                    self.disk.display(),
                    self.engine
                ))
                .arg(format!("--append={cmdline} mmio={mmio:#x}")),
            Kind::Firecracker => {
                let config = serde_json::json!({
                    "boot-source": {
                        "kernel_image_path": self.guest,
                        "boot_args": format!("{cmdline} console=ttyS0"),
                    },
                    "drives": [{
                        "drive_id": "disk",
                        "path_on_host": self.disk,
                        "is_root_device": false,
                        "is_read_only": false,
                        "io_engine": self.engine,
                    }],
                    "machine-config": { "vcpu_count": 1, "mem_size_mib": 256 },
                });
                let path = self.disk.with_extension("json");
                fs::write(&path, config.to_string())?;
                command.args(["--no-api", "--config-file"]).arg(path)
            }
        };
        Ok(command)
    }

    /// Runs a case once.
    pub(crate) fn run(&self, case: &Case, rate: f64, watch: Watch) -> Result<(Sample, Calls)> {
        let Case {
            bench,
            depth,
            count,
            ..
        } = case;
        let cmdline = format!("bench={bench} depth={depth} count={count}");
        let mut child = self
            .command(&cmdline)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().ok_or("no stdin")?;
        let mut output = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
        let pid = child.id();
        let (done, watchdog) = guard(child);

        let outcome = (|| {
            wait_for(&mut output, "READY")?;
            let task = self.task(pid)?;
            let tracer = match watch {
                Watch::Cpu => None,
                Watch::Calls => Some(Tracer::attach(&task, &self.disk.with_extension("calls"))?),
            };
            let before = Cpu::of(&task)?;
            input.write_all(b"\n")?;
            let result = wait_for(&mut output, "RESULT")?;
            let (cpu, waited) = Cpu::of(&task)?.since(before);
            let calls = tracer.map_or(Ok(Calls::new()), Tracer::detach)?;
            input.write_all(b"\n")?;
            let said = numbers(&result);
            let ticks = said.get("ticks").ok_or("no ticks in the result")?;
            let sample = Sample {
                seconds: ticks / rate,
                cpu,
                waited,
                said,
            };
            Ok((sample, calls))
        })();
        if outcome.is_ok() {
            // The guest resets now, which ends the VMM.
            let _ = output.try_for_each(|line| line.map(drop));
        }
        // The watchdog kills what still runs then.
        drop(done);
        watchdog.join().map_err(|_| "the watchdog panicked")?;
        outcome
    }

    /// The folder of the device's thread below /proc.
    fn task(&self, pid: u32) -> Result<PathBuf> {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?.path();
            if fs::read_to_string(task.join("comm"))?.trim_end() == self.thread {
                return Ok(task);
            }
        }
        Err(format!("{} has no thread {}", self.name, self.thread).into())
    }
}

/// Kills the VMM when it takes too long or the sender is dropped.
fn guard(mut child: Child) -> (mpsc::Sender<()>, thread::JoinHandle<()>) {
    let (done, ended) = mpsc::channel();
    let watchdog = thread::spawn(move || {
        if ended.recv_timeout(WATCHDOG) == Err(RecvTimeoutError::Timeout) {
            eprintln!("a VMM did not end in {WATCHDOG:?}");
        }
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    });
    (done, watchdog)
}

fn wait_for(output: &mut Lines<impl BufRead>, word: &str) -> Result<String> {
    let mut seen = Vec::new();
    for line in output {
        let line = line?;
        if line.starts_with(word) {
            return Ok(line);
        }
        seen.push(line);
    }
    Err(format!("the guest ended before {word}: {seen:?}").into())
}

/// The words `name=number` of a line.
fn numbers(line: &str) -> BTreeMap<String, f64> {
    line.split(' ')
        .filter_map(|word| word.split_once('='))
        .filter_map(|(name, number)| Some((name.to_owned(), number.parse().ok()?)))
        .collect()
}

/// strace on one thread.
struct Tracer {
    strace: Child,
    report: PathBuf,
}

impl Tracer {
    fn attach(task: &Path, report: &Path) -> Result<Self> {
        let thread = task.file_name().ok_or("no thread")?;
        let mut strace = Command::new("strace")
            .arg("-c")
            .arg("-o")
            .arg(report)
            .arg("-p")
            .arg(thread)
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stderr = strace.stderr.take().ok_or("no stderr")?;
        let mut said = Vec::new();
        while !said.ends_with(b"attached\n") {
            let mut byte = [0];
            if stderr.read(&mut byte)? == 0 {
                return Err(format!("strace: {}", String::from_utf8_lossy(&said)).into());
            }
            said.extend(byte);
        }
        Ok(Self {
            strace,
            report: report.to_owned(),
        })
    }

    /// The calls since it was attached.
    fn detach(mut self) -> Result<Calls> {
        signal(&self.strace, "INT");
        self.strace.wait()?;
        let report = fs::read_to_string(&self.report)?;
        // `% time, seconds, usecs/call, calls, [errors,] syscall`; the rest does not start with a
        // number, or is the total.
        let calls = report.lines().filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.first()?.parse::<f64>().ok()?;
            let calls = words.get(3)?.parse().ok()?;
            let name = *words.last()?;
            (name != "total").then(|| (name.to_owned(), calls))
        });
        Ok(calls.collect())
    }
}
