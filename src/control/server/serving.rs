//! A server of a Unix socket: one thread serves all clients, each in its turn and in bounded memory. What they say is
//! a [`Service`]'s business.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use devices::Threads;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::connection::Connection;
use super::service::{ClientLimits, Service};
use crate::Error;
use crate::process_ids::peer;
use crate::threads::patiently;
use crate::wake::Wake;

/// How often clients may take what is left for them at the end, and how long each time.
const LAST_ROUNDS: usize = 10;
const LAST_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};
const BACK_OFF: Duration = Duration::from_millis(100);

/// A socket that is served by a thread of its own. Dropping it gives clients a moment for what they have not fetched.
#[derive(Debug)]
pub struct SocketServer {
    stop: Stop,
    threads: Threads,
    /// It gives back what it has served.
    thread: Option<JoinHandle<Option<Box<dyn Serve>>>>,
}

/// A server without its thread: its clients wait. Dropping it lets them go.
pub struct ParkedServer {
    stop: Stop,
    server: Box<dyn Serve>,
    threads: Threads,
}

impl fmt::Debug for ParkedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParkedServer").finish_non_exhaustive()
    }
}

/// What ends a server's thread.
#[derive(Debug, Clone)]
struct Stop {
    wake: Arc<Wake>,
    asked: Arc<AtomicBool>,
}

impl Stop {
    fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
        self.wake.set();
    }
}

/// A server of whatever protocol.
trait Serve: Send {
    fn name(&self) -> &'static str;

    /// Serves until it is asked to stop.
    fn run(&mut self);

    /// Gives the clients a moment for what they have not fetched.
    fn end(&mut self);
}

impl SocketServer {
    /// Serves the clients of `listener` until the server is dropped. `name` is the thread's name, and what the log
    /// calls the server.
    ///
    /// # Errors
    /// When the host refuses a thread or an event.
    pub fn start(
        name: &'static str,
        listener: UnixListener,
        service: impl Service,
    ) -> Result<Self, Error> {
        Self::start_with(
            name,
            listener,
            service,
            Arc::new(Wake::new()?),
            &Threads::default(),
        )
    }

    /// The same, with what wakes it when the answer to a request has come, and what makes its thread.
    pub(super) fn start_with<S: Service>(
        name: &'static str,
        listener: UnixListener,
        service: S,
        wake: Arc<Wake>,
        threads: &Threads,
    ) -> Result<Self, Error> {
        listener
            .set_nonblocking(true)
            .map_err(Error::host("cannot use the socket"))?;
        let asked = Arc::new(AtomicBool::new(false));
        let stop = Stop { wake, asked };
        let server = Server::<S> {
            name,
            listener,
            limits: service.limits(),
            service,
            connections: Vec::new(),
            stop: stop.clone(),
        };
        let (server, threads) = (Box::new(server), threads.clone());
        ParkedServer {
            stop,
            server,
            threads,
        }
        .serve()
    }

    /// Ends the thread, until [`ParkedServer::serve`]: a process with threads does not fork.
    ///
    /// # Panics
    /// When the thread has panicked, as it did.
    #[must_use]
    pub fn park(mut self) -> ParkedServer {
        self.stop.ask();
        let (stop, threads) = (self.stop.clone(), self.threads.clone());
        let thread = self.thread.take().map(JoinHandle::join);
        match thread {
            Some(Ok(Some(server))) => ParkedServer {
                stop,
                server,
                threads,
            },
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            _ => unreachable!("the thread and its server are there until this or the drop"),
        }
    }
}

impl ParkedServer {
    /// Serves the clients again.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn serve(self) -> Result<SocketServer, Error> {
        let Self {
            stop,
            server,
            threads,
        } = self;
        stop.asked.store(false, Ordering::SeqCst);
        // What has come meanwhile is looked at.
        stop.wake.set();
        let name = server.name();
        let server = Arc::new(Mutex::new(Some(server)));
        let started = patiently(|| {
            let server = Arc::clone(&server);
            threads.spawn(name, name, move || {
                let taken = server.lock().unwrap_or_else(PoisonError::into_inner).take();
                taken.map(|mut server| {
                    server.run();
                    server
                })
            })
        });
        let thread = started.map_err(Error::host(format!("cannot start the thread {name}")))?;
        Ok(SocketServer {
            stop,
            threads,
            thread: Some(thread),
        })
    }
}

impl Drop for SocketServer {
    fn drop(&mut self) {
        self.stop.ask();
        if let Some(Ok(Some(mut server))) = self.thread.take().map(JoinHandle::join) {
            server.end();
        }
    }
}

/// What the thread owns.
struct Server<S: Service> {
    name: &'static str,
    listener: UnixListener,
    limits: ClientLimits,
    service: S,
    connections: Vec<Connection<S>>,
    stop: Stop,
}

impl<S: Service> Serve for Server<S> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&mut self) {
        self.service.begin();
        while !self.stop.asked.load(Ordering::SeqCst) {
            self.turn();
        }
    }

    fn end(&mut self) {
        let (limits, service) = (&self.limits, &mut self.service);
        for _ in 0..LAST_ROUNDS {
            self.connections.retain_mut(|connection| {
                if connection.is_pending() {
                    connection.serve(limits, service);
                }
                connection.tell(limits, service);
                connection.write(limits).unwrap_or(false) && connection.wants_output()
            });
            if self.connections.is_empty() {
                break;
            }
            let mut fds: Vec<_> = (self.connections.iter())
                .map(|connection| PollFd::new(connection.stream(), PollFlags::OUT))
                .collect();
            let _ = poll(&mut fds, Some(&LAST_WAIT));
        }
    }
}

impl<S: Service> Server<S> {
    /// How long there is nothing to do unless something comes; `None`: for ever.
    fn idle_time(&self) -> Option<Timespec> {
        let limits = &self.limits;
        let mut connections = self.connections.iter();
        if connections.any(|connection| connection.has_work(limits)) {
            return Some(Timespec::default());
        }
        let deadlines = self.connections.iter();
        let first = deadlines.filter_map(|connection| connection.deadline(limits));
        let left = first.min()?.saturating_duration_since(Instant::now());
        // Not before it.
        let left = left.saturating_add(Duration::from_millis(1));
        Some(left.try_into().unwrap_or_default())
    }

    /// Waits for something to do, and does it.
    fn turn(&mut self) {
        let mut fds = vec![
            PollFd::new(&*self.stop.wake, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        for connection in &self.connections {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, connection.wants_input(&self.limits));
            flags.set(PollFlags::OUT, connection.wants_output());
            fds.push(PollFd::new(connection.stream(), flags));
            let watched = S::watched(connection.client()).filter(|_| !connection.wants_output());
            // Of a client that is behind, events wait where they are counted.
            let watched = watched.unwrap_or_else(|| self.stop.wake.as_fd());
            fds.push(PollFd::from_borrowed_fd(watched, PollFlags::IN));
        }
        let limit = self.idle_time();
        if poll(&mut fds, limit.as_ref()).is_err_and(|errno| errno != Errno::INTR) {
            // It cannot fail otherwise, short of memory.
            thread::yield_now();
        }
        let ready: Vec<_> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        // Before answers are looked for.
        self.stop.wake.clear();
        let (limits, service) = (&self.limits, &mut self.service);
        let mut ready_clients = ready.iter().skip(2).step_by(2);
        self.connections.retain_mut(|connection| {
            let ready = ready_clients.next().copied().unwrap_or(PollFlags::empty());
            let gone = PollFlags::ERR | PollFlags::NVAL;
            let served = (|| {
                let has_input = ready.intersects(PollFlags::IN | PollFlags::HUP);
                if has_input && connection.wants_input(limits) {
                    connection.read()?;
                }
                connection.serve(limits, service);
                connection.tell(limits, service);
                connection.write(limits)
            })();
            let gone =
                ready.intersects(gone) || ready.intersects(PollFlags::HUP) && connection.is_done();
            served.unwrap_or(false) && !gone && connection.check_deadline(limits, service)
        });
        if ready.get(1).is_some_and(|ready| !ready.is_empty()) {
            self.accept();
        }
    }

    fn accept(&mut self) {
        let name = self.name;
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
        if let Ok(peer) = peer(&stream) {
            let process = match peer.pid {
                0 => " of another namespace of processes".to_owned(),
                pid => format!(", process {pid}"),
            };
            log::info!("{name}: a client{process}, user {}", peer.uid);
        }
        if self.connections.len() >= self.limits.clients {
            // Who only listens is silent by nature, and who waits for an answer is not asked for more: a machine is saved or
            // copied as long as it takes. They go last.
            let idle = (0..self.connections.len()).min_by_key(|place| {
                let connection = self.connections.get(*place);
                connection.map(|connection| {
                    let listens = S::watched(connection.client()).is_some();
                    (connection.is_pending(), listens, connection.active)
                })
            });
            if let Some(place) = idle {
                log::info!("{name}: too many clients, the one that is silent the longest goes");
                self.connections.remove(place);
            }
        }
        if let Ok(connection) = Connection::new(stream, &mut self.service) {
            self.connections.push(connection);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
