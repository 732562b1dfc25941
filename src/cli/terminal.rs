//! Raw mode, only when stdin is a terminal.
//!
//! Job control works in raw mode as anywhere, but for Ctrl-Z, which is the guest's: a SIGTSTP from outside
//! restores the terminal and stops the process, SIGCONT makes the terminal raw again. A process that goes
//! on in the background leaves the terminal alone until it is in the foreground. SIGQUIT does what it does
//! to any program, on a restored terminal.

use std::ffi::c_int;
#[cfg(all(feature = "control", feature = "snapshot"))]
use std::io::Write;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use signal_hook::consts::{SIGCONT, SIGQUIT, SIGTSTP};
use signal_hook::low_level::emulate_default_handler;
use vmm_reference::in_background;

use super::signals::{is_ignored, register};

/// How often a process in the background looks whether it is in the foreground: a shell tells only one
/// that was stopped.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

/// stdin in raw mode; dropping it restores what was there before.
pub(super) struct RawTerminal(Option<Raw>);

struct Raw {
    modes: Arc<Mutex<Modes>>,
    signals: Option<Arc<Signals>>,
    /// What the thread does first that follows them.
    begin: Arc<dyn Fn() + Send + Sync>,
    thread: Option<JoinHandle<()>>,
}

/// A terminal that this program may use, with what tells of job control.
pub(super) struct Terminal {
    saved: Termios,
    signals: io::Result<Signals>,
}

impl Terminal {
    /// stdin, when it is one. `ignored` are the signals that this process was started to ignore.
    pub(super) fn find(ignored: u64) -> Option<Self> {
        let stdin = io::stdin();
        // Fails when stdin is no terminal: then there is nothing to do or to restore. The terminal may
        // belong to another job, which would not like it; and the kernel would stop this one.
        let saved = tcgetattr(&stdin).ok().filter(|_| !in_background(&stdin))?;
        let signals = Signals::catch(ignored);
        Some(Self { saved, signals })
    }

    /// Every key goes to the guest unechoed. Output processing stays on, so that our own messages
    /// begin at the left margin. `begin` is what a thread does first that follows job control.
    pub(super) fn enter(self, begin: impl Fn() + Send + Sync + 'static) -> RawTerminal {
        let Self { saved, signals } = self;
        let _ = FIRST.set(saved.clone());
        let mut modes = Modes {
            saved,
            raw: None,
            over: false,
        };
        if let Err(error) = modes.enter() {
            log::warn!("the terminal stays in line mode: {error}");
            return RawTerminal(None);
        }
        let mut raw = Raw {
            modes: Arc::new(Mutex::new(modes)),
            signals: None,
            begin: Arc::new(begin),
            thread: None,
        };
        let followed = signals.and_then(|signals| {
            raw.signals = Some(Arc::new(signals));
            raw.follow()
        });
        if let Err(error) = followed {
            log::warn!("the terminal does not follow SIGTSTP, SIGCONT and SIGQUIT: {error}");
        }
        RawTerminal(Some(raw))
    }
}

impl RawTerminal {
    /// Ends the thread that follows signals, until [`Self::unpark`].
    #[cfg(all(feature = "control", feature = "snapshot"))]
    pub(super) fn park(&mut self) {
        if let Some(Raw {
            signals: Some(signals),
            thread,
            ..
        }) = &mut self.0
            && let Some(thread) = thread.take()
        {
            let [stop, _] = &signals.stop;
            // It has room for a byte.
            let _ = (&mut &*stop).write(&[0]);
            let _ = thread.join();
        }
    }

    /// Signals are followed again, those too that have come meanwhile.
    #[cfg(all(feature = "control", feature = "snapshot"))]
    pub(super) fn unpark(&mut self) {
        if let Some(raw) = &mut self.0
            && let Err(error) = raw.follow()
        {
            log::warn!("the terminal does not follow signals any more: {error}");
        }
    }
}

impl Raw {
    fn follow(&mut self) -> io::Result<()> {
        if let Some(signals) = &self.signals {
            let (signals, modes) = (Arc::clone(signals), Arc::clone(&self.modes));
            let begin = Arc::clone(&self.begin);
            let serve = move || {
                begin();
                signals.serve(&modes);
            };
            let thread = thread::Builder::new().name("terminal".into());
            self.thread = Some(thread.spawn(serve)?);
        }
        Ok(())
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(raw) = &self.0 {
            let mut modes = lock(&raw.modes);
            modes.restore();
            modes.over = true;
        }
    }
}

/// The terminal's modes.
#[derive(Debug)]
struct Modes {
    /// What to restore.
    saved: Termios,
    /// What it was set to instead, while it is.
    raw: Option<Termios>,
    /// It is restored for good.
    over: bool,
}

fn lock(modes: &Mutex<Modes>) -> MutexGuard<'_, Modes> {
    modes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the terminal was at first, for a signal handler.
static FIRST: OnceLock<Termios> = OnceLock::new();

/// The terminal is another process' from now on.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// This process, a fork, leaves the terminal to its parent.
#[cfg(all(feature = "control", feature = "snapshot"))]
pub(super) fn give_up() {
    GIVEN_UP.store(true, Ordering::Relaxed);
}

/// Restores the terminal from a signal handler, after which the process ends.
pub(super) fn restore_at_once() {
    if let Some(first) = FIRST.get()
        && !GIVEN_UP.load(Ordering::Relaxed)
    {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, first);
    }
}

impl Modes {
    fn enter(&mut self) -> io::Result<()> {
        let stdin = io::stdin();
        let mut raw = tcgetattr(&stdin)?;
        // After a stop without a warning (SIGSTOP) it may be as we left it, or as a shell set it.
        let ours = self.raw.take().is_some_and(|ours| same(&ours, &raw));
        if !ours {
            self.saved = raw.clone();
        }
        raw.input_modes -= InputModes::BRKINT
            | InputModes::ICRNL
            | InputModes::INLCR
            | InputModes::IGNCR
            | InputModes::INPCK
            | InputModes::ISTRIP
            | InputModes::IXON;
        raw.local_modes -=
            LocalModes::ECHO | LocalModes::ICANON | LocalModes::IEXTEN | LocalModes::ISIG;
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        // Now: what was typed ahead is kept.
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        self.raw = Some(raw);
        Ok(())
    }

    fn restore(&mut self) {
        if self.raw.take().is_some() && !in_background(io::stdin()) {
            // Fails only when the terminal is gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.saved);
        }
    }
}

fn same(one: &Termios, other: &Termios) -> bool {
    one.input_modes == other.input_modes && one.local_modes == other.local_modes
}

/// The signals that concern the terminal, a socket each that has a byte for each that has come.
#[derive(Debug)]
struct Signals {
    caught: [(c_int, UnixStream); 3],
    /// A byte in the second one ends the thread that follows them.
    stop: [UnixStream; 2],
    /// The process goes on in the background: nobody says when that ends.
    away: AtomicBool,
}

impl Signals {
    fn catch(ignored: u64) -> io::Result<Self> {
        let catch = |signal| {
            let (receiver, sender) = UnixStream::pair()?;
            receiver.set_nonblocking(true)?;
            if !is_ignored(ignored, signal) {
                register(signal, sender)?;
            } else {
                // Its end would be readable for ever.
                std::mem::forget(sender);
            }
            Ok::<_, io::Error>((signal, receiver))
        };
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        Ok(Self {
            caught: [catch(SIGTSTP)?, catch(SIGCONT)?, catch(SIGQUIT)?],
            stop: [ours, theirs],
            away: AtomicBool::new(false),
        })
    }

    fn serve(&self, modes: &Mutex<Modes>) {
        let [_, stop] = &self.stop;
        let is_read = |socket: &UnixStream| matches!((&mut &*socket).read(&mut [0; 64]), Ok(1..));
        loop {
            let sockets = self.caught.iter().map(|(_, socket)| socket);
            let mut fds: Vec<_> = sockets
                .chain([stop])
                .map(|socket| PollFd::new(socket, PollFlags::IN))
                .collect();
            let away = self.away.load(Ordering::Relaxed);
            // It is interrupted by the signals themselves.
            let _ = poll(&mut fds, away.then_some(&LOOK));
            if is_read(stop) {
                return;
            }
            for (signal, socket) in &self.caught {
                if is_read(socket) && handle(*signal, modes) {
                    self.away.store(true, Ordering::Relaxed);
                }
            }
            if self.away.load(Ordering::Relaxed) && !in_background(io::stdin()) {
                self.away.store(false, Ordering::Relaxed);
                let mut modes = lock(modes);
                if !modes.over
                    && let Err(error) = modes.enter()
                {
                    log::warn!("the terminal stays in line mode: {error}");
                }
            }
        }
    }
}

/// Says whether the terminal is to be raw again.
fn handle(signal: c_int, modes: &Mutex<Modes>) -> bool {
    if signal == SIGCONT {
        return true;
    }
    // Until it has stopped, or to its end, nobody makes the terminal raw.
    let mut modes = lock(modes);
    modes.restore();
    // Fails for signals that do not exist.
    let _ = emulate_default_handler(signal);
    false
}
