//! Sockets between host and guest (VIRTIO 1.3, 5.10), by the protocol on Unix sockets that
//! Firecracker introduced: a program of the host connects to the device's socket and writes
//! `CONNECT port`; what the guest connects to is the socket of that name with `_port` behind it.
//!
//! Everything that grows has a bound: streams, clients that have not said what they want, bytes that
//! wait for a socket (by credit), answers that wait for the driver. Sockets are watched by an event
//! loop of the device's own, whose descriptor is its one source: for what can go on, else for their
//! end, so that nothing spins. They take turns with the room that the guest has. The data passes
//! through one buffer of ours: a packet's header lies in front of it.

mod clients;
mod counts;
mod from_guest;
mod listener;
mod packet;
mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{RecvFlags, recv};
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use self::counts::Counts;
use self::packet::{HEADER, Header, op};
use self::stream::{BUFFER, Broken, Ports, Stream};
use super::{Chain, ConfigSpace, Event, Monitor, QueueError, Queues, VirtioDevice};
use crate::Rare;
use crate::config::VsockConfig;
use crate::socket::{SocketError, SocketFile};
use crate::state::{StateError, VirtioDeviceState};

const QUEUE_SIZE: u16 = 256;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;
/// An event: every stream is broken (5.10.6.7).
const TRANSPORT_RESET: u32 = 0;
/// Streams at once.
const MAX_STREAMS: usize = 1023;
/// Clients of the host that have not said yet where to connect.
const MAX_CLIENTS: usize = 64;
/// Resets that wait for the driver before its packets do too; those of streams that break come on top.
const MAX_RESETS: usize = 256;
/// Events of one look: all that there can be, so that the order of turns is ours.
const EVENTS: usize = MAX_STREAMS + MAX_CLIENTS + 1;
/// Packets of a stream before it is the next one's turn.
const TURN: usize = 16;
/// The first port of the host's end of a connection that the host began.
const FIRST_PORT: u32 = 1 << 30;
/// What the inner event loop says of the listener; streams and clients have numbers above.
const LISTENER: u64 = 0;

/// A driver can stop its device as often as it likes.
static LOST: Rare = Rare::new();

/// A client of the host, before it has said where to connect.
#[derive(Debug)]
struct Client {
    socket: UnixStream,
    line: Vec<u8>,
}

/// Sockets between host and guest.
#[derive(Debug)]
pub struct Vsock {
    cid: u64,
    listener: SocketFile,
    epoll: OwnedFd,
    streams: BTreeMap<u64, Stream>,
    /// The numbers of the streams.
    by_ports: BTreeMap<Ports, u64>,
    clients: BTreeMap<u64, Client>,
    /// Streams that owe the guest a packet, in the order of their turns.
    owing: VecDeque<u64>,
    /// For what belongs to no stream, or no longer.
    resets: VecDeque<Header>,
    /// The stream that sent last: the others come before it.
    last: u64,
    next_number: u64,
    next_port: u32,
    chain: Chain,
    buffer: Vec<u8>,
    /// Data waits for the driver's buffers.
    dry: bool,
    /// The driver's streams are of a machine of before, and it was not told yet.
    broken: bool,
    counts: Counts,
}

impl Vsock {
    /// Finds out whether [`Self::open`] could listen there, without doing so.
    ///
    /// # Errors
    /// As there.
    pub fn check(config: &VsockConfig) -> Result<(), SocketError> {
        listener::check(&config.path)
    }

    /// Makes the socket of a device that another process has ([`Self::on`]).
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn bind(path: &Path) -> Result<SocketFile, SocketError> {
        listener::bind(path)
    }

    /// Listens on the configured socket.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open(config: &VsockConfig) -> Result<Self, SocketError> {
        Self::with(listener::bind(&config.path)?, config)
    }

    /// Listens on a socket that another process has made at the configured path for this one.
    ///
    /// # Errors
    /// When it is none that listens.
    pub fn on(socket: OwnedFd, config: &VsockConfig) -> Result<Self, SocketError> {
        Self::with(SocketFile::given(&config.path, socket)?, config)
    }

    fn with(listener: SocketFile, config: &VsockConfig) -> Result<Self, SocketError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(io::Error::from)?;
        let data = EventData::new_u64(LISTENER);
        epoll::add(&epoll, listener.listener(), data, EventFlags::IN).map_err(io::Error::from)?;
        Ok(Self {
            cid: config.cid.into(),
            listener,
            epoll,
            streams: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            clients: BTreeMap::new(),
            owing: VecDeque::new(),
            resets: VecDeque::new(),
            last: 0,
            next_number: LISTENER + 1,
            next_port: FIRST_PORT,
            chain: Chain::default(),
            buffer: vec![0; BUFFER as usize],
            dry: false,
            broken: false,
            counts: Counts::default(),
        })
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Adds a stream; watches it as far as it can go on.
    fn add(&mut self, stream: Stream) {
        let number = self.number();
        self.by_ports.insert(stream.ports, number);
        self.streams.insert(number, stream);
        self.settle(number, Ok(()));
    }

    /// After anything has happened to a stream: watches what it waits for now, remembers what it
    /// owes; ends it when it is broken.
    fn settle(&mut self, number: u64, result: Result<(), Broken>) {
        let Some(stream) = self.streams.get_mut(&number) else {
            return;
        };
        let watched = result.and_then(|()| watch(&self.epoll, number, stream));
        if watched == Err(Broken) {
            // Each stream that the guest knows has room for this: new ones come when there is.
            self.resets.extend(stream.farewell(self.cid));
            self.remove(number);
        } else if stream.owes() && !std::mem::replace(&mut stream.queued, true) {
            self.owing.push_back(number);
        }
    }

    /// Forgets a stream. Closing its socket ends its watch.
    fn remove(&mut self, number: u64) {
        if let Some(stream) = self.streams.remove(&number) {
            if self.by_ports.get(&stream.ports) == Some(&number) {
                self.by_ports.remove(&stream.ports);
            }
            self.owing.retain(|owing| *owing != number);
        }
    }

    /// Looks at the sockets. Says whether there may be more to do now.
    fn look(&mut self, queues: &mut Queues) -> Result<bool, QueueError> {
        let mut space = [std::mem::MaybeUninit::uninit(); EVENTS];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut space[..], Some(&now)) else {
            // A signal; whatever was there is there still.
            return Ok(true);
        };
        let next = self.last.wrapping_add(1);
        events.sort_unstable_by_key(|event| event.data.u64().wrapping_sub(next));
        let mut left = queues.ring(RECEIVE).map_or(0, |ring| ring.size());
        let mut more = false;
        for event in events {
            let (number, flags) = (event.data.u64(), event.flags);
            if number == LISTENER {
                more |= self.accept();
            } else if self.clients.contains_key(&number) {
                self.hear(number);
            } else {
                more |= self.stream_event(number, flags, &mut left, queues)?;
            }
        }
        Ok(more)
    }

    /// Whether there may be one more stream. One whose program is gone and that no guest has answered
    /// yet makes way.
    fn has_place(&mut self) -> bool {
        if self.streams.len() >= MAX_STREAMS
            && let Some((&number, _)) = self
                .streams
                .iter()
                .find(|(_, stream)| stream.connecting && stream.abandoned)
        {
            self.settle(number, Err(Broken));
        }
        self.streams.len() < MAX_STREAMS
    }

    /// A stream's socket has something, or room, or is gone. Says whether there may be more to read.
    fn stream_event(
        &mut self,
        number: u64,
        flags: EventFlags,
        left: &mut u16,
        queues: &mut Queues,
    ) -> Result<bool, QueueError> {
        let Some(stream) = self.streams.get_mut(&number) else {
            return Ok(false);
        };
        let mut result = Ok(());
        if flags.contains(EventFlags::OUT) {
            result = stream.flush();
        }
        let gone = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        let mut more = false;
        if stream.watched.contains(EventFlags::IN) {
            more = self.receive(number, gone, left, queues)?;
        } else if gone {
            result = result.and_then(|()| stream.host_gone());
        }
        self.settle(number, result);
        Ok(more)
    }

    /// Moves bytes of a stream to the guest, as far as it has room, in so many packets at most.
    fn receive(
        &mut self,
        number: u64,
        gone: bool,
        left: &mut u16,
        queues: &mut Queues,
    ) -> Result<bool, QueueError> {
        let (Some(stream), Some(ring)) = (self.streams.get_mut(&number), queues.ring(RECEIVE))
        else {
            return Ok(false);
        };
        for _ in 0..TURN {
            let credit = stream.credit() as usize;
            if credit > 0 && *left == 0 {
                return Ok(true);
            }
            if credit == 0 {
                return Ok(false);
            }
            if !ring.pop(&mut self.chain)? {
                // However many look meanwhile.
                if !ring.is_stopping() && !std::mem::replace(&mut self.dry, true) {
                    self.counts.monitor.stalls.add(1);
                }
                return Ok(false);
            }
            self.dry = false;
            *left -= 1;
            let room = self.chain.writable_len().saturating_sub(HEADER as u64);
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            if room == 0 {
                // Not even for a header and a byte.
                ring.complete(self.chain.head(), 0)?;
                continue;
            }
            let most = credit.min(room).min(BUFFER as usize);
            let place = self.buffer.get_mut(..most).unwrap_or_default();
            match recv(&stream.socket, &mut *place, RecvFlags::DONTWAIT) {
                Ok((len @ 1.., _)) => {
                    let data = self.buffer.get(..len).unwrap_or_default();
                    let len = u32::try_from(len).unwrap_or(BUFFER);
                    let header = stream.packet(self.cid, op::RW, 0, len).bytes();
                    stream.count_sent(len);
                    self.last = number;
                    let mut written = self.chain.write(ring.ram(), &header)?;
                    written += self.chain.write(ring.ram(), data)?;
                    ring.complete(self.chain.head(), written)?;
                    self.counts.received(len.into());
                }
                ended => {
                    ring.undo_pop(1);
                    match ended {
                        Err(error)
                            if io::Error::from(error).kind() == io::ErrorKind::WouldBlock => {}
                        Ok(_) => stream.host_ended(gone),
                        Err(_) => stream.host_ended(true),
                    }
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Tells the driver that its streams are broken, once it has room for that.
    fn announce(&mut self, queues: &mut Queues) -> Result<(), QueueError> {
        if let Some(ring) = queues.ring(EVENT).filter(|_| self.broken)
            && ring.pop(&mut self.chain)?
        {
            let event = TRANSPORT_RESET.to_le_bytes();
            let written = self.chain.write(ring.ram(), &event)?;
            ring.complete(self.chain.head(), written)?;
            self.broken = false;
        }
        Ok(())
    }

    /// Gives the guest the packets without data that it is owed, as far as it has room.
    fn pay(&mut self, queues: &mut Queues) -> Result<(), QueueError> {
        let Some(ring) = queues.ring(RECEIVE) else {
            return Ok(());
        };
        while !(self.resets.is_empty() && self.owing.is_empty()) && ring.pop(&mut self.chain)? {
            let header = loop {
                if let Some(reset) = self.resets.pop_front() {
                    break Some(reset);
                }
                let Some(number) = self.owing.pop_front() else {
                    break None;
                };
                let Some(stream) = self.streams.get_mut(&number) else {
                    continue;
                };
                stream.queued = false;
                if let Some((op, flags)) = stream.take_owed() {
                    let header = stream.packet(self.cid, op, flags, 0);
                    self.settle(number, Ok(()));
                    break Some(header);
                }
            };
            let Some(header) = header else {
                ring.undo_pop(1);
                break;
            };
            let written = self.chain.write(ring.ram(), &header.bytes())?;
            ring.complete(self.chain.head(), written)?;
            self.counts.received(0);
        }
        Ok(())
    }
}

/// Watches what a stream waits for, and nothing else: a socket that is gone would be ready for ever.
fn watch(epoll: &OwnedFd, number: u64, stream: &mut Stream) -> Result<(), Broken> {
    let (before, now) = (stream.watched, stream.interest());
    let data = EventData::new_u64(number);
    let changed = match (before.is_empty(), now.is_empty()) {
        _ if before == now => Ok(()),
        (true, _) => epoll::add(epoll, &stream.socket, data, now),
        (false, true) => epoll::delete(epoll, &stream.socket),
        (false, false) => epoll::modify(epoll, &stream.socket, data, now),
    };
    stream.watched = now;
    // Out of the kernel's memory.
    changed.map_err(|_| Broken)
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn name(&self) -> &'static str {
        "virtio-vsock"
    }

    fn features(&self) -> u64 {
        0
    }

    /// Receive, transmit, and events, of which there is one kind.
    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::new(ConfigSpace::new(self.cid.to_le_bytes().to_vec(), 0..0))
    }

    fn monitor(&self) -> Arc<Monitor> {
        Arc::clone(&self.counts.monitor)
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.epoll.as_raw_fd()]
    }

    fn serve(&mut self, _: Event, queues: &mut Queues) -> Result<bool, QueueError> {
        self.announce(queues)?;
        // Answers first: they make room for what the guest sends.
        self.pay(queues)?;
        let packets = self.transmit(queues)?;
        let bytes = self.look(queues)?;
        self.pay(queues)?;
        self.counts.streams.set(self.streams.len() as u64);
        queues.publish()?;
        // Without room for answers, the driver's buffers wake it.
        Ok(bytes || packets && self.resets.len() < MAX_RESETS)
    }

    fn save(&self) -> Result<VirtioDeviceState, StateError> {
        Ok(VirtioDeviceState::Vsock {})
    }

    fn load(&mut self, state: &VirtioDeviceState, runs: bool) -> Result<(), StateError> {
        let VirtioDeviceState::Vsock {} = state else {
            return Err(StateError::Foreign);
        };
        self.broken = runs;
        // The guest may still hold on to streams of before, which began at the first ports.
        let mut random = [0; 4];
        getrandom(&mut random, GetRandomFlags::empty()).map_err(|_| StateError::Host)?;
        self.next_port = FIRST_PORT | u32::from_le_bytes(random) & (FIRST_PORT - 1);
        Ok(())
    }

    fn stop(&mut self) {
        let mut lost = 0;
        for stream in self.streams.values_mut() {
            // What a socket does not take now is lost with the guest that sent it.
            let _ = stream.flush();
            lost += stream.waiting();
        }
        if lost > 0
            && let Some(times) = LOST.again()
        {
            log::warn!(
                "{lost} bytes that a guest sent to sockets of the host were dropped, {times} times so far: their \
                 readers were too slow"
            );
        }
        self.streams.clear();
        self.counts.streams.set(0);
        (self.dry, self.broken) = (false, false);
        self.by_ports.clear();
        self.clients.clear();
        self.owing.clear();
        self.resets.clear();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
