//! The signals that this program takes, and those that it was started to ignore.

use std::ffi::c_int;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::{SIGCONT, SIGWINCH, SIGXFSZ};
use signal_hook::low_level::pipe;
#[cfg(all(feature = "control", feature = "snapshot"))]
use signal_hook::low_level::unregister;
use signal_hook::{SigId, flag};
use vmm_reference::Error;

pub(super) fn signal_error(source: io::Error) -> Error {
    Error::Host {
        what: "cannot handle signals".to_owned(),
        source,
    }
}

/// A console file that reaches the size limit of the process is an error of that write, not the
/// end of the VM.
pub(super) fn ignore_file_size_signal() -> Result<(), Error> {
    flag::register(SIGXFSZ, Arc::default()).map_err(signal_error)?;
    Ok(())
}

/// SIGTERM asks the guest to power off; SIGINT and SIGHUP end the VM in order, so that the terminal is
/// restored. Gives the end of a socket that has a byte for each that has come; `None` when all of
/// them are in the set `ignored`.
pub(super) fn signals(signals: &[c_int], ignored: u64) -> io::Result<Option<OwnedFd>> {
    let (receiver, sender) = UnixStream::pair()?;
    let mut caught = None;
    for &signal in signals {
        // nohup, and a shell's background jobs, start us with a signal ignored: so it stays.
        if !is_ignored(ignored, signal) {
            register(signal, sender.try_clone()?)?;
            caught = Some(());
        }
    }
    Ok(caught.map(|()| receiver.into()))
}

/// What writes to descriptors when a signal comes.
static REGISTERED: Mutex<Vec<SigId>> = Mutex::new(Vec::new());

/// Writes a byte to a socket for each signal that comes.
pub(super) fn register(signal: c_int, socket: UnixStream) -> io::Result<()> {
    let id = pipe::register(signal, socket)?;
    let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    registered.push(id);
    Ok(())
}

/// Nothing of that is written any more.
#[cfg(all(feature = "control", feature = "snapshot"))]
pub(super) fn unregister_all() {
    let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    for id in registered.drain(..) {
        unregister(id);
    }
}

/// The end of a socket that is readable once the terminal may have another size. A process that is stopped, or in
/// the background, is not told.
pub(super) fn resizes() -> io::Result<OwnedFd> {
    let (receiver, sender) = UnixStream::pair()?;
    register(SIGCONT, sender.try_clone()?)?;
    register(SIGWINCH, sender)?;
    Ok(receiver.into())
}

pub(super) fn is_ignored(ignored: u64, signal: c_int) -> bool {
    ignored >> (signal - 1) & 1 == 1
}

/// The signals this process was started to ignore, a bit each from signal 1 on (proc_pid_status(5)).
pub(super) fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}
