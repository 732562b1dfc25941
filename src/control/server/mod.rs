//! The control socket: commands and events of a machine for other processes (docs/control.md).
//!
//! One thread serves all clients, each in its turn and in bounded memory, by [`VmHandle::command`]; the guest and
//! the machine's own thread take no notice of a client that is slow, silent or hostile.

mod client;
mod protocol;
#[cfg(feature = "schema")]
pub(crate) mod schema;

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use devices::socket::{Clients, LONGEST, SocketError, SocketFile};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;

use self::client::Client;
use crate::Error;
use crate::control::handle::VmHandle;
use crate::wake::Wake;

pub use self::protocol::PROTOCOL;

/// Clients at a time. Another one takes the place of the one that has been silent the longest.
const MAX_CLIENTS: usize = 16;
/// How often clients may take what is left for them at the end, and how long each time.
const LAST_ROUNDS: usize = 10;
const LAST_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};
const BACK_OFF: Duration = Duration::from_millis(100);
const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// A socket in the file system on which nobody is served yet.
#[derive(Debug)]
pub struct ControlSocket(SocketFile);

/// What is at the path of a control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// Nothing, or a socket whose process is gone.
    Free,
    /// A socket on which another program listens.
    InUse,
}

fn refused(path: &Path, error: SocketError) -> Error {
    let cure = match &error {
        SocketError::InUse => "name another path, or end the other VM first",
        SocketError::NoSocket => "name a path where nothing is",
        SocketError::TooLong(_) => "name a shorter path, or one that begins at the current folder",
        _ => "name a path in a folder that is there and can be written",
    };
    Error::Refused {
        field: "control".into(),
        value: path.display().to_string(),
        source: error.into(),
        cure: cure.to_owned(),
    }
}

impl ControlSocket {
    /// Makes the socket, for its owner only (mode 0600). One that a VMM which is gone left behind is replaced.
    ///
    /// # Errors
    /// When there is something else, or a VMM that is not gone, or the socket cannot be made.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        SocketFile::bind(path, LONGEST, Clients::Owner)
            .map(Self)
            .map_err(|error| refused(path, error))
    }

    /// Finds out whether a socket can be made at a path, without making it.
    ///
    /// # Errors
    /// When there is something else, or no socket can be made there.
    pub fn check(path: &Path) -> Result<Place, Error> {
        match SocketFile::check(path, LONGEST) {
            Ok(_) => Ok(Place::Free),
            Err(SocketError::InUse) => Ok(Place::InUse),
            Err(error) => Err(refused(path, error)),
        }
    }

    /// Serves clients until the server is dropped.
    ///
    /// # Errors
    /// When the host refuses a thread or an event.
    pub fn serve(self, handle: VmHandle) -> Result<ControlServer, Error> {
        let wake = Arc::new(Wake::new()?);
        let stop = Arc::new(AtomicBool::new(false));
        let mut server = Server {
            listener: self.0,
            clients: Vec::new(),
            handle,
            wake: Arc::clone(&wake),
            stop: Arc::clone(&stop),
        };
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || server.run())
            .map_err(Error::host("cannot start the thread of the control socket"))?;
        Ok(ControlServer {
            wake,
            stop,
            thread: Some(thread),
        })
    }
}

/// A control socket that is served. Dropping it gives clients a moment for what they have not fetched, and takes
/// the socket away.
#[derive(Debug)]
pub struct ControlServer {
    wake: Arc<Wake>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake.set();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread owns.
struct Server {
    /// Until the thread ends: then its file is gone, too.
    listener: SocketFile,
    clients: Vec<Client>,
    handle: VmHandle,
    wake: Arc<Wake>,
    stop: Arc<AtomicBool>,
}

impl Server {
    fn run(&mut self) {
        while !self.stop.load(Ordering::SeqCst) {
            self.turn(None);
        }
        for _ in 0..LAST_ROUNDS {
            self.clients.iter_mut().for_each(Client::take_events);
            self.clients
                .retain_mut(|client| client.write().unwrap_or(false));
            self.clients.retain(Client::wants_output);
            if self.clients.is_empty() {
                break;
            }
            let mut fds: Vec<_> = (self.clients.iter())
                .map(|client| PollFd::new(client.stream(), PollFlags::OUT))
                .collect();
            let _ = poll(&mut fds, Some(&LAST_WAIT));
        }
    }

    /// Waits for something to do, and does it.
    fn turn(&mut self, limit: Option<&Timespec>) {
        let mut fds = vec![
            PollFd::new(&*self.wake, PollFlags::IN),
            PollFd::new(self.listener.listener(), PollFlags::IN),
        ];
        let mut limit = limit;
        for client in &self.clients {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, client.wants_input());
            flags.set(PollFlags::OUT, client.wants_output());
            fds.push(PollFd::new(client.stream(), flags));
            let events = client.subscription().filter(|_| !client.wants_output());
            // Of a client that is behind, events wait where they are counted.
            let events = events.map_or(self.wake.as_fd(), AsFd::as_fd);
            fds.push(PollFd::from_borrowed_fd(events, PollFlags::IN));
            if client.has_work() {
                limit = Some(&AT_ONCE);
            }
        }
        if poll(&mut fds, limit).is_err_and(|errno| errno != Errno::INTR) {
            // It cannot fail otherwise, short of memory.
            thread::yield_now();
        }
        let ready: Vec<_> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        let handle = self.handle.clone();
        let mut ready_clients = ready.iter().skip(2).step_by(2);
        self.clients.retain_mut(|client| {
            let ready = ready_clients.next().copied().unwrap_or(PollFlags::empty());
            let gone = PollFlags::ERR | PollFlags::NVAL;
            let served = (|| {
                if ready.intersects(PollFlags::IN | PollFlags::HUP) && client.wants_input() {
                    client.read()?;
                }
                client.serve(&handle);
                client.take_events();
                client.write()
            })();
            let gone =
                ready.intersects(gone) || ready.intersects(PollFlags::HUP) && client.is_done();
            served.unwrap_or(false) && !gone
        });
        if ready.get(1).is_some_and(|ready| !ready.is_empty()) {
            self.accept();
        }
    }

    fn accept(&mut self) {
        let stream = match self.listener.listener().accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    // Short of descriptors: whoever waits for one is not worth a processor.
                    thread::sleep(BACK_OFF);
                }
                return;
            }
        };
        if let Ok(peer) = socket_peercred(&stream) {
            log::info!(
                "control: a client, process {}, user {}",
                peer.pid.as_raw_nonzero(),
                peer.uid.as_raw()
            );
        }
        if self.clients.len() >= MAX_CLIENTS {
            // Who only listens is silent by nature, and goes last.
            let idle = (0..self.clients.len()).min_by_key(|place| {
                let client = self.clients.get(*place);
                client.map(|client| (client.subscription().is_some(), client.active))
            });
            if let Some(place) = idle {
                log::info!("control: too many clients, the one that is silent the longest goes");
                self.clients.remove(place);
            }
        }
        if let Ok(client) = Client::new(stream) {
            self.clients.push(client);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
