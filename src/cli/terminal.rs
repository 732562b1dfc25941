//! Raw mode, only when stdin is a terminal.
//!
//! Job control works in raw mode as anywhere, but for Ctrl-Z, which is the guest's: a SIGTSTP from outside
//! restores the terminal and stops the process, SIGCONT makes the terminal raw again. A process that goes
//! on in the background leaves the terminal alone until it is in the foreground. SIGQUIT does what it does
//! to any program, on a restored terminal.

use std::ffi::c_int;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use signal_hook::consts::{SIGCONT, SIGQUIT, SIGTSTP};
use signal_hook::low_level::{emulate_default_handler, pipe};
use vmm_reference::in_background;

use super::signals::is_ignored;

/// How often a process in the background looks whether it is in the foreground: a shell tells only one
/// that was stopped.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

/// stdin in raw mode; dropping it restores what was there before.
#[derive(Debug)]
pub(super) struct RawTerminal(Option<Arc<Mutex<Modes>>>);

impl RawTerminal {
    /// Every key goes to the guest unechoed. Output processing stays on, so that our own messages
    /// begin at the left margin. `ignored` are the signals that this process was started to ignore.
    pub(super) fn enter(ignored: u64) -> Self {
        let stdin = io::stdin();
        // Fails when stdin is no terminal: then there is nothing to do or to restore. The terminal may
        // belong to another job, which would not like it; and the kernel would stop this one.
        let Ok(saved) = tcgetattr(&stdin) else {
            return Self(None);
        };
        if in_background(&stdin) {
            return Self(None);
        }
        let _ = FIRST.set(saved.clone());
        let mut modes = Modes {
            saved,
            raw: None,
            over: false,
        };
        if let Err(error) = modes.enter() {
            log::warn!("the terminal stays in line mode: {error}");
            return Self(None);
        }
        let modes = Arc::new(Mutex::new(modes));
        if let Err(error) = Signals::catch(ignored).and_then(|signals| {
            let modes = Arc::clone(&modes);
            let serve = move || signals.serve(&modes);
            thread::Builder::new().name("terminal".into()).spawn(serve)
        }) {
            log::warn!("the terminal does not follow SIGTSTP, SIGCONT and SIGQUIT: {error}");
        }
        Self(Some(modes))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(modes) = &self.0 {
            let mut modes = lock(modes);
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

/// Restores the terminal from a signal handler, after which the process ends.
#[cfg(feature = "snapshot")]
pub(super) fn restore_at_once(stdin: std::os::fd::BorrowedFd<'_>) {
    if let Some(first) = FIRST.get() {
        let _ = tcsetattr(stdin, OptionalActions::Now, first);
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
struct Signals([(c_int, UnixStream); 3]);

impl Signals {
    fn catch(ignored: u64) -> io::Result<Self> {
        let catch = |signal| {
            let (receiver, sender) = UnixStream::pair()?;
            receiver.set_nonblocking(true)?;
            if !is_ignored(ignored, signal) {
                pipe::register(signal, sender)?;
            } else {
                // Its end would be readable for ever.
                std::mem::forget(sender);
            }
            Ok::<_, io::Error>((signal, receiver))
        };
        Ok(Self([catch(SIGTSTP)?, catch(SIGCONT)?, catch(SIGQUIT)?]))
    }

    fn serve(self, modes: &Mutex<Modes>) {
        // Goes on in the background: nobody says when that ends.
        let mut away = false;
        loop {
            let mut fds = self
                .0
                .each_ref()
                .map(|(_, socket)| PollFd::new(socket, PollFlags::IN));
            // It is interrupted by the signals themselves.
            let _ = poll(&mut fds, away.then_some(&LOOK));
            for (signal, socket) in &self.0 {
                if matches!((&mut &*socket).read(&mut [0; 64]), Ok(1..)) {
                    away |= handle(*signal, modes);
                }
            }
            if away && !in_background(io::stdin()) {
                away = false;
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
