//! Tells a service manager how the VM does: that it runs, that it ends, and now and then that it is well (sd_notify(3)).
//!
//! The crate for that opens the manager's socket for each message, which a process in a sandbox cannot.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_reference::{Command, Error, VmHandle};

/// How long the main loop is waited for at once.
const TURN: Duration = Duration::from_millis(10);

/// The service manager.
#[derive(Debug)]
pub(super) struct Manager {
    socket: UnixDatagram,
    /// How long it waits for a sign of life.
    patience: Option<Duration>,
}

/// What tells it of a VM that runs. Dropping it says that the VM ends.
pub(super) struct Notifier {
    socket: UnixDatagram,
    patience: Option<Duration>,
    handle: VmHandle,
    /// What a thread does first that gives signs of life.
    begin: Arc<dyn Fn() + Send + Sync>,
    pings: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Manager {
    /// The one that has started this process, if it wants to know.
    pub(super) fn of_this_process() -> Option<Self> {
        let address = env::var_os("NOTIFY_SOCKET")?;
        match connected(&address) {
            Ok(socket) => Some(Self {
                socket,
                patience: patience(
                    env::var("WATCHDOG_USEC").ok().as_deref(),
                    env::var("WATCHDOG_PID").ok().as_deref(),
                ),
            }),
            Err(error) => {
                log::warn!("the service manager cannot be told of the VM: {error}");
                None
            }
        }
    }

    /// The VM is there. `begin` is what a thread does first that gives signs of life.
    ///
    /// # Errors
    /// When the host refuses it.
    pub(super) fn runs(
        self,
        handle: VmHandle,
        begin: impl Fn() + Send + Sync + 'static,
    ) -> Result<Notifier, Error> {
        let Self { socket, patience } = self;
        tell(&socket, "READY=1\nSTATUS=the VM runs");
        let mut notifier = Notifier {
            socket,
            patience,
            handle,
            begin: Arc::new(begin),
            pings: None,
        };
        notifier.unpark()?;
        Ok(notifier)
    }
}

impl Notifier {
    /// Signs of life are given from now on, where somebody waits for them.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub(super) fn unpark(&mut self) -> Result<(), Error> {
        let Some(patience) = self.patience else {
            return Ok(());
        };
        let refused = |source| Error::Host {
            what: "cannot start the thread that gives signs of life".to_owned(),
            source,
        };
        let (handle, begin) = (self.handle.clone(), Arc::clone(&self.begin));
        let socket = self.socket.try_clone().map_err(refused)?;
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new().name("notify".to_owned());
        let thread = thread.spawn(move || {
            begin();
            let goes_on =
                |patience| stopped.recv_timeout(patience) == Err(RecvTimeoutError::Timeout);
            while goes_on(patience / 2) {
                // The main loop answers, hangs, or is parked and waits for this thread's end.
                let Ok(pending) = handle.start_command(Command::Status {}, Vec::new()) else {
                    continue;
                };
                loop {
                    match pending.wait_for(TURN) {
                        Some(Ok(_)) => tell(&socket, "WATCHDOG=1"),
                        None if goes_on(Duration::ZERO) => continue,
                        _ => {}
                    }
                    break;
                }
            }
        });
        self.pings = Some((stop, thread.map_err(refused)?));
        Ok(())
    }

    /// Ends the thread that gives them, until [`Self::unpark`].
    pub(super) fn park(&mut self) {
        if let Some((stop, thread)) = self.pings.take() {
            drop(stop);
            // It has no panic to tell of.
            let _ = thread.join();
        }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        tell(&self.socket, "STOPPING=1");
        self.park();
    }
}

fn tell(socket: &UnixDatagram, what: &str) {
    // Nobody may be there to hear it any more.
    let _ = socket.send(what.as_bytes());
}

/// A path, or the name of an abstract socket behind an `@`.
fn connected(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    socket.connect_addr(&address)?;
    // A manager that does not read keeps nobody from anything.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// `WATCHDOG_USEC`, unless it is for another process (sd_watchdog_enabled(3)).
fn patience(micros: Option<&str>, process: Option<&str>) -> Option<Duration> {
    let is_ours = process.is_none_or(|process| process.parse() == Ok(std::process::id()));
    let micros = micros?
        .parse()
        .ok()
        .filter(|micros| *micros > 0 && is_ours)?;
    Some(Duration::from_micros(micros))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_of_another_process_is_none_of_this_one() {
        let ours = std::process::id().to_string();
        let second = Some(Duration::from_secs(1));
        assert_eq!(patience(Some("1000000"), None), second);
        assert_eq!(patience(Some("1000000"), Some(&ours)), second);
        assert_eq!(patience(Some("1000000"), Some("1")), None);
        for text in [None, Some("0"), Some("-1"), Some("soon")] {
            assert_eq!(patience(text, None), None);
        }
    }

    #[test]
    fn a_manager_may_have_a_path_or_a_name_without_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let listens = UnixDatagram::bind(&path).unwrap();
        tell(&connected(path.as_os_str()).unwrap(), "READY=1");
        let mut buffer = [0; 64];
        let len = listens.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"READY=1");
        let name = format!("vmm-reference-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listens = UnixDatagram::bind_addr(&address).unwrap();
        tell(
            &connected(OsStr::new(&format!("@{name}"))).unwrap(),
            "STOPPING=1",
        );
        let len = listens.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"STOPPING=1");
        assert!(connected(OsStr::new("/nowhere/notify")).is_err());
    }
}
