//! Runs a VMM with the guest of the benches, and measures the thread that does a device's work.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::signal;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// No run takes longer.
const WATCHDOG: Duration = Duration::from_secs(180);

/// System calls by name.
pub(crate) type Calls = BTreeMap<String, u64>;

/// What a thread has had of its processors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    ran: u64,
    waited: u64,
}

impl Cpu {
    /// Of a thread's folder below /proc: nanoseconds on a processor, and ready but without one
    /// (kernel Documentation/scheduler/sched-stats).
    pub(crate) fn of(task: &Path) -> Result<Self> {
        let text = fs::read_to_string(task.join("schedstat"))?;
        let mut numbers = text.split(' ').map(str::parse);
        let (Some(ran), Some(waited)) = (numbers.next(), numbers.next()) else {
            return Err(format!("a schedstat of {text:?}").into());
        };
        let (ran, waited) = (ran?, waited?);
        Ok(Self { ran, waited })
    }

    /// Seconds since then, of both.
    pub(crate) fn since(self, then: Self) -> (f64, f64) {
        let seconds = |now: u64, then| now.saturating_sub(then) as f64 / 1e9;
        (
            seconds(self.ran, then.ran),
            seconds(self.waited, then.waited),
        )
    }
}

/// Ticks of the time stamp counter in a second. A guest's counter runs as the host's.
pub(crate) fn ticks_per_second() -> f64 {
    let ticks = || {
        // SAFETY: every x86_64 processor has the counter.
        unsafe { core::arch::x86_64::_rdtsc() }
    };
    let (start, first) = (Instant::now(), ticks());
    thread::sleep(Duration::from_millis(200));
    (ticks() - first) as f64 / start.elapsed().as_secs_f64()
}

/// A VMM that boots the guest.
pub(crate) struct Run<'a> {
    pub(crate) name: &'a str,
    pub(crate) command: Command,
    /// The name of the thread to measure.
    pub(crate) thread: &'a str,
    /// Its system calls are counted, by way of this file.
    pub(crate) calls: Option<PathBuf>,
}

/// Between the guest's two waits for input.
pub(crate) struct Measured {
    /// Seconds of the thread, and those that it was kept from a processor.
    pub(crate) cpu: f64,
    pub(crate) waited: f64,
    /// What the guest says.
    pub(crate) said: BTreeMap<String, f64>,
    pub(crate) calls: Calls,
}

impl Run<'_> {
    /// Runs it once; `before` is done when the guest is ready.
    pub(crate) fn measure(mut self, before: impl FnOnce() -> Result<()>) -> Result<Measured> {
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().ok_or("no stdin")?;
        let mut output = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
        let pid = child.id();
        let (done, watchdog) = guard(child);

        let outcome = (|| {
            wait_for(&mut output, "READY")?;
            before()?;
            let task = self.task(pid)?;
            let tracer = self
                .calls
                .as_ref()
                .map(|report| Tracer::attach(&task, report))
                .transpose()?;
            let then = Cpu::of(&task)?;
            input.write_all(b"\n")?;
            let result = wait_for(&mut output, "RESULT")?;
            let (cpu, waited) = Cpu::of(&task)?.since(then);
            let calls = tracer.map_or(Ok(Calls::new()), Tracer::detach)?;
            input.write_all(b"\n")?;
            Ok(Measured {
                cpu,
                waited,
                said: numbers(&result),
                calls,
            })
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
