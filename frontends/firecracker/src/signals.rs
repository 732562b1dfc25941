//! Signals that end the process with a status of their own, a line in the log and one of metrics; and the thread that
//! writes those, and metrics every minute.
//!
//! A handler may do next to nothing. It writes what it knows to a pipe and waits for the thread that reads there to
//! end the process; should that not happen, it ends the process itself.

use std::io;
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use libc::{c_int, siginfo_t};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use signal_hook::low_level::exit;
use signal_hook_registry::register_unchecked;

use crate::metrics::{self, Ask, PERIOD, Waiting};

/// What the process ends with when a signal is not what it should be.
const UNEXPECTED: i32 = 2;
/// Of SIGSYS: a filter has refused a system call (SYS_SECCOMP, siginfo(5)).
const SECCOMP: c_int = 1;
/// How long a handler waits for the end.
const PATIENCE: Duration = Duration::from_secs(2);

/// The signals, what the process ends with, and where they are counted.
const SIGNALS: [(c_int, i32, (&str, &str)); 8] = [
    (libc::SIGSYS, 148, ("seccomp", "num_faults")),
    (libc::SIGBUS, 149, ("signals", "sigbus")),
    (libc::SIGSEGV, 150, ("signals", "sigsegv")),
    (libc::SIGXFSZ, 151, ("signals", "sigxfsz")),
    (libc::SIGXCPU, 154, ("signals", "sigxcpu")),
    (libc::SIGPIPE, 155, ("signals", "sigpipe")),
    (libc::SIGHUP, 156, ("signals", "sighup")),
    (libc::SIGILL, 157, ("signals", "sigill")),
];

/// Where handlers write; it stays open.
static PIPE: AtomicI32 = AtomicI32::new(-1);
/// What is written there for the thread to end; no signal has this number.
const PARK: c_int = 0;

/// The thread, which waits for signals and for the time of the next line of metrics.
#[derive(Debug)]
pub(crate) struct Clock {
    reading: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

/// The same without its thread: signals that come wait for it, each for a while.
#[derive(Debug)]
pub(crate) struct ParkedClock {
    reading: Arc<OwnedFd>,
}

/// Catches the signals and starts the thread.
pub(crate) fn start() -> io::Result<Clock> {
    let clock = start_thread()?;
    for (signal, ..) in SIGNALS {
        // SAFETY: the handler makes system calls that are async-signal-safe (write, nanosleep, _exit) and touches no
        // memory but its own stack and a static that is set before.
        unsafe { register_unchecked(signal, handle) }?;
    }
    Ok(clock)
}

/// Starts the thread. In the process of a fork its parent's has not come along, and what it read from is closed; the
/// signals are caught still.
pub(crate) fn start_thread() -> io::Result<Clock> {
    let (reading, writing) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    PIPE.store(writing.into_raw_fd(), Ordering::SeqCst);
    let reading = Arc::new(reading);
    ParkedClock { reading }.go_on()
}

impl Clock {
    /// Ends the thread: a process with threads does not fork.
    pub(crate) fn park(self) -> ParkedClock {
        tell(PARK, 0);
        // What it has panicked of was told.
        let _ = self.thread.join();
        ParkedClock {
            reading: self.reading,
        }
    }
}

impl ParkedClock {
    /// And starts it again.
    pub(crate) fn go_on(self) -> io::Result<Clock> {
        let reading = Arc::clone(&self.reading);
        let thread = thread::Builder::new()
            .name("fc_clock".to_owned())
            .spawn(move || {
                leave_to_others();
                watch(&reading);
            })?;
        Ok(Clock {
            reading: self.reading,
            thread,
        })
    }
}

/// Writes to the thread, from wherever.
fn tell(signal: c_int, code: c_int) {
    let mut message = [0; 8];
    message[..4].copy_from_slice(&signal.to_ne_bytes());
    message[4..].copy_from_slice(&code.to_ne_bytes());
    let pipe: RawFd = PIPE.load(Ordering::SeqCst);
    if pipe >= 0 {
        // SAFETY: it stays open once it is there.
        let pipe = unsafe { BorrowedFd::borrow_raw(pipe) };
        let _ = rustix::io::write(pipe, &message);
    }
}

/// Blocks the signals on this thread: in a handler of its own it would wait for itself.
fn leave_to_others() {
    // SAFETY: the set is written before it is read, and changes nothing but this thread's mask.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for (signal, ..) in SIGNALS {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Runs on the thread that got the signal.
fn handle(info: &siginfo_t) {
    // SAFETY: the kernel and kill(2) send this signal with the process that it comes from.
    if info.si_signo == libc::SIGPIPE && unsafe { info.si_pid() } == own_pid() {
        // Somebody has closed what this process writes to, which its writer hears of.
        return;
    }
    tell(info.si_signo, info.si_code);
    thread::sleep(PATIENCE);
    exit(status(info.si_signo, info.si_code));
}

fn own_pid() -> c_int {
    rustix::process::getpid().as_raw_nonzero().get()
}

fn status(signal: c_int, code: c_int) -> i32 {
    let known = SIGNALS.iter().find(|(known, ..)| *known == signal);
    match known {
        Some((libc::SIGSYS, ..)) if code != SECCOMP => UNEXPECTED,
        Some((_, status, _)) => *status,
        None => UNEXPECTED,
    }
}

/// Waits for signals, and for the time of the next line of metrics, until it is parked. The machine is asked for its
/// numbers without waiting for them: it may be parked first.
fn watch(pipe: &OwnedFd) {
    let mut next = Instant::now() + PERIOD;
    let mut line: Option<Waiting> = None;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let mut fds = vec![PollFd::new(pipe, PollFlags::IN)];
        fds.extend(line.iter().map(|line| PollFd::new(line, PollFlags::IN)));
        let _ = poll(&mut fds, left.try_into().ok().as_ref());
        let is_told = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        let mut message = [0; 8];
        if rustix::io::read(pipe, &mut message) == Ok(message.len()) {
            let [a, b, c, d, e, f, g, h] = message;
            let (signal, code) = (
                c_int::from_ne_bytes([a, b, c, d]),
                c_int::from_ne_bytes([e, f, g, h]),
            );
            if signal == PARK {
                return;
            }
            end(signal, code);
        }
        if is_told && let Some(line) = line.take() {
            let _ = metrics::end(&line);
        }
        if next <= Instant::now() {
            next = Instant::now() + PERIOD;
            line = metrics::begin();
            if line.is_none() {
                let _ = metrics::write(Ask::Nobody);
            }
        }
    }
}

fn end(signal: c_int, code: c_int) -> ! {
    if let Some((.., (group, key))) = SIGNALS.iter().find(|(known, ..)| *known == signal) {
        metrics::set(group, key, 1);
    }
    log::error!("Shutting down VM after intercepting signal {signal}, code {code}.");
    let _ = metrics::write(Ask::Nobody);
    exit(status(signal, code))
}
