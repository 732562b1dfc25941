//! Signals that end the process with a status of their own, a line in the log and one of metrics; and the thread that
//! writes those, and metrics every minute.
//!
//! A handler may do next to nothing. It writes what it knows to a pipe and waits for the thread that reads there to
//! end the process; should that not happen, it ends the process itself.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use jail::Violation;
use libc::{c_int, siginfo_t};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use signal_hook::low_level::exit;
use signal_hook_registry::register_unchecked;

use crate::metrics::{self, Ask, PERIOD, Waiting};
use crate::seccomp::Filters;
use crate::terminal;

/// What the process ends with when a signal is not what it should be.
const UNEXPECTED: i32 = 2;
/// Of SIGSYS: a filter has refused a system call (SYS_SECCOMP, siginfo(5)).
const SECCOMP: c_int = 1;
/// How long a handler waits for the end.
const PATIENCE: Duration = Duration::from_secs(2);
/// The thread may be refused this often, with a pause in between, before it counts.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

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

/// Where handlers write; it stays open. A process without one has no thread that reads there.
static PIPE: AtomicI32 = AtomicI32::new(-1);
/// What is written there for the thread to end; no signal has this number.
const PARK: Message = [0; size_of::<Message>()];

/// The process, which not every filter lets a handler ask for.
static OWN_PID: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// Whether this is the thread that reads there. Initialized and dropped without code: a handler may read it.
    static IS_WATCHER: Cell<bool> = const { Cell::new(false) };
}

/// What a handler writes: the signal and its code; the number of a system call that was refused, and the names of it and
/// of the thread's role, with zeros behind them.
const SIGNAL: Range<usize> = 0..4;
const CODE: Range<usize> = 4..8;
const NUMBER: Range<usize> = 8..12;
const NAME: Range<usize> = 12..44;
const ROLE: Range<usize> = 44..76;
type Message = [u8; 76];

/// The thread, which waits for signals and for the time of the next line of metrics.
#[derive(Debug)]
pub(crate) struct Clock {
    reading: Arc<OwnedFd>,
    filtered: bool,
    thread: JoinHandle<()>,
}

/// The same without its thread: signals that come wait for it, each for a while.
#[derive(Debug)]
pub(crate) struct ParkedClock {
    reading: Arc<OwnedFd>,
    filtered: bool,
}

/// Catches the signals and starts the thread, which has a filter of system calls if it is `filtered`.
pub(crate) fn start(filtered: bool) -> io::Result<Clock> {
    let clock = start_thread(filtered)?;
    for (signal, ..) in SIGNALS {
        // SAFETY: the handler makes system calls that are async-signal-safe (write, nanosleep, _exit) and touches no
        // memory but its own stack and a static that is set before.
        unsafe { register_unchecked(signal, handle) }?;
    }
    Ok(clock)
}

/// In the process of a fork, before anything else: pipe and thread are its parent's. The signals are still caught, and end
/// it at once until it has its own.
pub(crate) fn forget() {
    PIPE.store(-1, Ordering::SeqCst);
    OWN_PID.store(process::id(), Ordering::Relaxed);
}

/// Starts the thread, also in the process of a fork.
pub(crate) fn start_thread(filtered: bool) -> io::Result<Clock> {
    OWN_PID.store(process::id(), Ordering::Relaxed);
    let (reading, writing) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    PIPE.store(writing.into_raw_fd(), Ordering::SeqCst);
    let reading = Arc::new(reading);
    ParkedClock { reading, filtered }.go_on()
}

impl Clock {
    /// Ends the thread: a process with threads does not fork.
    pub(crate) fn park(self) -> ParkedClock {
        tell(&PARK);
        // What it has panicked of was told.
        let _ = self.thread.join();
        ParkedClock {
            reading: self.reading,
            filtered: self.filtered,
        }
    }
}

impl ParkedClock {
    /// And starts it again.
    pub(crate) fn go_on(self) -> io::Result<Clock> {
        let thread = patiently(|| self.spawn())?;
        Ok(Clock {
            reading: self.reading,
            filtered: self.filtered,
            thread,
        })
    }

    fn spawn(&self) -> io::Result<JoinHandle<()>> {
        let (reading, filtered) = (Arc::clone(&self.reading), self.filtered);
        let thread = thread::Builder::new().name("fc_clock".to_owned());
        thread.spawn(move || {
            IS_WATCHER.set(true);
            leave_to_others();
            if filtered {
                Filters::begin_clock();
            }
            watch(&reading);
        })
    }
}

/// Starts a thread, and tries again where the host refuses it because there are too many just now (EAGAIN): the forks of
/// a process make theirs while it makes its own again.
fn patiently<T>(mut start: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut attempt = 1;
    loop {
        match start() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && attempt < ATTEMPTS => {
                attempt += 1;
                thread::sleep(PAUSE);
            }
            started => return started,
        }
    }
}

/// Writes to the thread, from wherever. Says whether there is one, or will be.
fn tell(message: &Message) -> bool {
    let pipe: RawFd = PIPE.load(Ordering::SeqCst);
    if pipe < 0 {
        return false;
    }
    // SAFETY: it stays open once it is there.
    let pipe = unsafe { BorrowedFd::borrow_raw(pipe) };
    let _ = rustix::io::write(pipe, message);
    true
}

/// Blocks the signals on this thread: in a handler of its own it would wait for itself. Not SIGSYS, which its own filter
/// would send: one that is blocked then ends the process without its status.
fn leave_to_others() {
    // SAFETY: the set is written before it is read, and changes nothing but this thread's mask.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for (signal, ..) in SIGNALS {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::sigdelset(&raw mut set, libc::SIGSYS);
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
    let mut message = [0; size_of::<Message>()];
    let mut put = |place: Range<usize>, bytes: &[u8]| {
        let place = message.get_mut(place).unwrap_or_default();
        for (to, from) in place.iter_mut().zip(bytes) {
            *to = *from;
        }
    };
    put(SIGNAL, &info.si_signo.to_ne_bytes());
    put(CODE, &info.si_code.to_ne_bytes());
    if let Some(violation) = Violation::of(info) {
        if IS_WATCHER.get() {
            // It would tell of it.
            exit(status(info.si_signo, info.si_code));
        }
        put(NUMBER, &violation.number.to_ne_bytes());
        put(NAME, violation.name.unwrap_or_default().as_bytes());
        put(ROLE, violation.role.as_bytes());
    }
    let is_told = tell(&message);
    if IS_WATCHER.get() {
        // It reads that next.
        return;
    }
    if is_told && info.si_code <= 0 {
        // Somebody has sent it, and this thread is at anything: with a lock that it holds, the other one waits for it.
        return;
    }
    if is_told {
        thread::sleep(PATIENCE);
    }
    exit(status(info.si_signo, info.si_code));
}

fn own_pid() -> c_int {
    OWN_PID.load(Ordering::Relaxed).cast_signed()
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
        let mut message = [0; size_of::<Message>()];
        if rustix::io::read(pipe, &mut message) == Ok(message.len()) {
            if message == PARK {
                return;
            }
            end(&message);
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

fn end(message: &Message) -> ! {
    let part = |place: Range<usize>| message.get(place).unwrap_or_default();
    let number = |place| part(place).try_into().map_or(0, c_int::from_ne_bytes);
    let text = |place| {
        let bytes = part(place).split(|byte| *byte == 0).next();
        String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
    };
    let (signal, code) = (number(SIGNAL), number(CODE));
    if let Some((.., (group, key))) = SIGNALS.iter().find(|(known, ..)| *known == signal) {
        metrics::set(group, key, 1);
    }
    if (signal, code) == (libc::SIGSYS, SECCOMP) {
        let (name, role) = (text(NAME), text(ROLE));
        let call = match &*name {
            "" => "It is a system call that no filter names".to_owned(),
            name => format!("It is {name}"),
        };
        log::error!(
            "Shutting down VM after intercepting a bad syscall ({}). {call}, of the thread '{role}'.",
            number(NUMBER)
        );
    } else {
        log::error!("Shutting down VM after intercepting signal {signal}, code {code}.");
    }
    let _ = metrics::write(Ask::Nobody);
    terminal::restore();
    exit(status(signal, code))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_refused_for_now_is_tried_again() {
        let mut calls = 0;
        let started = patiently(|| {
            calls += 1;
            match calls {
                3 => Ok(calls),
                _ => Err(io::ErrorKind::WouldBlock.into()),
            }
        });
        assert_eq!(started.unwrap(), 3);
        let refused = patiently(|| Err::<(), _>(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    /// What a handler writes in the process of a fork does not come to its parent.
    #[test]
    fn a_fork_forgets_where_its_parent_reads() {
        let (reading, writing) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        PIPE.store(writing.into_raw_fd(), Ordering::SeqCst);
        assert!(tell(&PARK));
        let mut message = [0; size_of::<Message>()];
        let read = |message: &mut Message| rustix::io::read(&reading, message);
        assert_eq!(read(&mut message), Ok(message.len()));
        OWN_PID.store(1, Ordering::Relaxed);
        forget();
        assert!(!tell(&PARK));
        assert_eq!(read(&mut message), Err(rustix::io::Errno::AGAIN));
        assert_eq!(own_pid(), process::id().cast_signed());
    }
}
