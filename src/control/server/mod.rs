//! The control socket: commands and events of a machine for other processes (docs/control.md).
//!
//! One thread serves all clients, each in its turn and in bounded memory, by [`VmHandle::command`]; the guest and
//! the machine's own thread take no notice of a client that is slow, silent or hostile.

mod client;
mod protocol;

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, Mode, access, fchmod};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use self::client::Client;
use crate::Error;
use crate::control::handle::VmHandle;
use crate::control::wake::Wake;

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
pub struct ControlSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// Its name, which is taken away with it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have put something else there.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What is at the path of a control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nothing.
    Free,
    /// A socket whose process is gone.
    Stale,
    /// A socket on which another process listens.
    InUse,
}

fn refused(path: &Path, cause: String, cure: &str) -> Error {
    Error::Config {
        field: "control".into(),
        value: path.display().to_string(),
        cause,
        cure: cure.to_owned(),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

impl ControlSocket {
    /// Makes the socket, for its owner only (mode 0600). One that a VMM which is gone left behind is replaced.
    ///
    /// # Errors
    /// When there is something else, or a VMM that is not gone, or the socket cannot be made.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let refuse = |cause: String, cure: &str| refused(path, cause, cure);
        let place = Self::check(path)?;
        if place == Place::InUse {
            return Err(refused(
                path,
                "another process listens there".to_owned(),
                "name another path, or end the other VM first",
            ));
        }
        if place == Place::Stale {
            fs::remove_file(path)
                .map_err(|error| refuse(error.to_string(), "name another path"))?;
        }
        let made = (|| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            // Before it has a name, so that nobody else can connect at any time.
            fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            bind(&socket, &SocketAddrUnix::new(path)?)?;
            listen(&socket, 128)?;
            Ok::<_, Errno>(socket)
        })();
        let socket = made.map_err(|errno| {
            refuse(
                errno.to_string(),
                "name a path in a folder that can be written",
            )
        })?;
        let identity = identity(path)
            .map_err(|error| refuse(error.to_string(), "name a path where nothing is"))?;
        Ok(Self {
            listener: socket.into(),
            file: SocketFile {
                path: path.to_owned(),
                identity,
            },
        })
    }

    /// Finds out whether a socket can be made at a path, without making it.
    ///
    /// # Errors
    /// When there is something else, or the folder cannot be written.
    pub fn check(path: &Path) -> Result<Place, Error> {
        if SocketAddrUnix::new(path).is_err() {
            return Err(refused(
                path,
                "the path of a socket has 107 bytes at most".to_owned(),
                "name a shorter one, or one that begins at the current folder",
            ));
        }
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => Err(refused(
                path,
                "there is something else than a socket".to_owned(),
                "name a path where nothing is",
            )),
            Ok(_) => match UnixStream::connect(path) {
                // Nobody listens: its process is gone.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Place::Stale),
                _ => Ok(Place::InUse),
            },
            Err(_) => {
                let folder = path
                    .parent()
                    .filter(|folder| !folder.as_os_str().is_empty());
                let folder = folder.unwrap_or(Path::new("."));
                match access(folder, Access::WRITE_OK | Access::EXEC_OK) {
                    Ok(()) => Ok(Place::Free),
                    Err(errno) => Err(refused(
                        path,
                        format!("the folder that it is in: {errno}"),
                        "name a path in a folder that is there and can be written",
                    )),
                }
            }
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
            listener: self.listener,
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
            _file: self.file,
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
    _file: SocketFile,
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
    listener: UnixListener,
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
            PollFd::new(&self.listener, PollFlags::IN),
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
        let stream = match self.listener.accept() {
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
