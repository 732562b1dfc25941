//! One connection between a socket of the host and a port of the guest: its credit in both
//! directions, and what the guest is owed.
//!
//! The guest may have so many bytes under way as there is room for in `waiting`; it gets no more than
//! it has said it has room for. Counters wrap (5.10.6.3).

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rustix::event::epoll::EventFlags;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::packet::{HOST, Header, NO_RECEIVE, NO_SEND, STREAM, op};

/// Bytes from the guest that wait for the host's socket.
pub(super) const BUFFER: u32 = 64 << 10;

/// The two ends, as the guest names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// Packets without data that the guest is owed.
#[derive(Debug, Default)]
struct Owed {
    /// A request or a response.
    greeting: Option<u16>,
    credit_update: bool,
    credit_request: bool,
    /// Flags.
    shutdown: u32,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) socket: UnixStream,
    pub(super) ports: Ports,
    /// The guest has yet to answer.
    pub(super) connecting: bool,
    /// The host's program went before the guest has answered.
    pub(super) abandoned: bool,
    /// The guest has forgotten it: what waits for the socket is all that is left.
    orphaned: bool,
    owed: Owed,
    /// It waits for its turn to get what it is owed.
    pub(super) queued: bool,
    /// What the inner event loop watches; nothing: it does not know the socket.
    pub(super) watched: EventFlags,
    /// Bytes of the guest that the socket has not taken.
    waiting: VecDeque<u8>,
    /// Bytes of the guest so far, and those that the socket took.
    received: u32,
    forwarded: u32,
    /// `forwarded` when the guest last learned it.
    told: u32,
    /// Bytes that went to the guest, and what it says about its own buffer.
    sent: u32,
    peer_buffer: u32,
    peer_forwarded: u32,
    /// What the guest will no more do, as flags of a shutdown; what the host's socket will no more.
    guest_done: u32,
    host_done: u32,
}

/// The guest broke the rules, or the socket is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

impl Stream {
    /// A stream that begins with this packet to the guest: a request, or a response to `request`.
    pub(super) fn new(
        socket: UnixStream,
        ports: Ports,
        greeting: u16,
        request: Option<&Header>,
    ) -> Self {
        Self {
            socket,
            ports,
            connecting: greeting == op::REQUEST,
            abandoned: false,
            orphaned: false,
            owed: Owed {
                greeting: Some(greeting),
                ..Owed::default()
            },
            queued: false,
            watched: EventFlags::empty(),
            waiting: VecDeque::new(),
            received: 0,
            forwarded: 0,
            told: 0,
            sent: 0,
            peer_buffer: request.map_or(0, |header| header.buf_alloc),
            peer_forwarded: request.map_or(0, |header| header.fwd_cnt),
            guest_done: 0,
            host_done: 0,
        }
    }

    /// Every packet of the guest carries its credit.
    pub(super) fn update_credit(&mut self, header: &Header) {
        self.peer_buffer = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
    }

    /// How many bytes the guest has room for.
    pub(super) fn credit(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_buffer.saturating_sub(under_way)
    }

    /// Whether bytes of the host's socket may still go to the guest.
    fn is_readable(&self) -> bool {
        (self.host_done & NO_SEND) | (self.guest_done & NO_RECEIVE) == 0
    }

    /// What is worth waking for.
    pub(super) fn interest(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        // Both sides know of the connection before there are bytes.
        let open = !self.connecting && self.owed.greeting.is_none();
        if self.is_readable() && open && self.credit() > 0 {
            flags |= EventFlags::IN;
        }
        if !self.waiting.is_empty() {
            flags |= EventFlags::OUT;
        }
        if flags.is_empty() && self.host_done != NO_RECEIVE | NO_SEND {
            // That the socket is gone, once: there may be nobody who asks.
            flags = EventFlags::ET;
        }
        flags
    }

    /// Bytes of the guest. More than it had credit for breaks the stream.
    pub(super) fn forward(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let len = u32::try_from(bytes.len()).map_err(|_| Broken)?;
        let under_way = self.received.wrapping_sub(self.forwarded);
        if self.connecting
            || self.guest_done & NO_SEND != 0
            || under_way.checked_add(len).is_none_or(|sum| sum > BUFFER)
        {
            return Err(Broken);
        }
        self.received = self.received.wrapping_add(len);
        let taken = if self.waiting.is_empty() {
            self.push(bytes)?
        } else {
            0
        };
        self.waiting.extend(bytes.get(taken..).unwrap_or_default());
        Ok(())
    }

    /// Gives the socket what has waited for it.
    pub(super) fn flush(&mut self) -> Result<(), Broken> {
        while !self.waiting.is_empty() {
            let waiting = std::mem::take(&mut self.waiting);
            let (first, _) = waiting.as_slices();
            let taken = self.push(first);
            self.waiting = waiting;
            match taken? {
                0 => break,
                taken => drop(self.waiting.drain(..taken)),
            }
        }
        self.finish()
    }

    /// Hands bytes to the socket; says how many it took. A program that no longer reads takes all
    /// of them: it may have written before, and that the guest shall get.
    fn push(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        let taken = match self.send(bytes) {
            Ok(taken) => taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => {
                if self.host_done & NO_RECEIVE == 0 {
                    self.host_done |= NO_RECEIVE;
                    self.owed.shutdown = self.host_done;
                }
                bytes.len()
            }
        };
        let len = u32::try_from(taken).map_err(|_| Broken)?;
        self.forwarded = self.forwarded.wrapping_add(len);
        // The guest would stall when its view lags by the whole buffer.
        self.owed.credit_update |= self.forwarded.wrapping_sub(self.told) >= BUFFER / 2;
        Ok(taken)
    }

    /// The guest has answered: the program learns its port. One that is gone already may have left bytes.
    pub(super) fn open(&mut self) {
        self.connecting = false;
        // The socket is empty: it takes a line, or is gone, which shows when it is read.
        let _ = self.send(format!("OK {}\n", self.ports.host).as_bytes());
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        Ok(send(&self.socket, bytes, flags)?)
    }

    /// The guest will send no more, receive no more, or both. Ends the stream when both, and
    /// everything has reached the socket.
    pub(super) fn shut_down(&mut self, flags: u32) -> Result<(), Broken> {
        self.guest_done |= flags & (NO_RECEIVE | NO_SEND);
        if self.guest_done & NO_RECEIVE != 0 {
            // It may be shut down already.
            let _ = self.socket.shutdown(Shutdown::Read);
        }
        self.finish()
    }

    fn finish(&mut self) -> Result<(), Broken> {
        if self.guest_done & NO_SEND != 0 && self.waiting.is_empty() {
            if self.guest_done == NO_RECEIVE | NO_SEND {
                return Err(Broken);
            }
            let _ = self.socket.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    /// The host's socket sends no more, or is gone altogether.
    pub(super) fn host_ended(&mut self, gone: bool) {
        let done = if gone { NO_RECEIVE | NO_SEND } else { NO_SEND };
        if done & !self.host_done != 0 {
            self.host_done |= done;
            self.owed.shutdown = self.host_done;
        }
    }

    /// The host's socket is gone, while nothing is read from it.
    pub(super) fn host_gone(&mut self) -> Result<(), Broken> {
        if self.connecting {
            // What it wrote before it went is for the guest, when that answers. Without, it has given up.
            self.abandoned = true;
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            let left = recv(&self.socket, &mut [0][..], flags);
            return left
                .is_ok_and(|(len, _)| len > 0)
                .then_some(())
                .ok_or(Broken);
        }
        // What it has left comes first, when the guest has room.
        if !self.is_readable() {
            self.host_ended(true);
        }
        Ok(())
    }

    /// The guest resets the stream: it waits for nothing. Whether the stream stays because of what
    /// the guest had sent before it closed its end.
    pub(super) fn outlives_guest(&mut self) -> bool {
        self.orphaned = self.guest_done & NO_SEND != 0 && !self.waiting.is_empty();
        self.guest_done = NO_RECEIVE | NO_SEND;
        self.owed = Owed::default();
        self.orphaned
    }

    /// What the guest is told when the stream breaks; nothing if it does not know it.
    pub(super) fn farewell(&self, cid: u64) -> Option<Header> {
        let known = !self.orphaned && self.owed.greeting != Some(op::REQUEST);
        known.then(|| answer(cid, self.ports, op::RST))
    }

    /// Bytes of the guest that the socket has not taken.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes went to the guest.
    pub(super) fn count_sent(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
        self.owed.credit_request |= self.credit() == 0;
    }

    pub(super) fn ask_for_update(&mut self) {
        self.owed.credit_update = true;
    }

    /// The next packet without data that the guest is owed.
    pub(super) fn take_owed(&mut self) -> Option<(u16, u32)> {
        if let Some(op) = self.owed.greeting.take() {
            return Some((op, 0));
        }
        if std::mem::take(&mut self.owed.credit_update) {
            return Some((op::CREDIT_UPDATE, 0));
        }
        if std::mem::take(&mut self.owed.credit_request) {
            return Some((op::CREDIT_REQUEST, 0));
        }
        match std::mem::take(&mut self.owed.shutdown) {
            0 => None,
            flags => Some((op::SHUTDOWN, flags)),
        }
    }

    pub(super) fn owes(&self) -> bool {
        if self.orphaned {
            return false;
        }
        let Owed {
            greeting,
            credit_update,
            credit_request,
            shutdown,
        } = self.owed;
        greeting.is_some() || credit_update || credit_request || shutdown != 0
    }

    /// A packet to the guest.
    pub(super) fn packet(&mut self, cid: u64, op: u16, flags: u32, len: u32) -> Header {
        self.told = self.forwarded;
        // It is in every header.
        self.owed.credit_update = false;
        Header {
            buf_alloc: BUFFER,
            fwd_cnt: self.forwarded,
            len,
            flags,
            ..answer(cid, self.ports, op)
        }
    }
}

/// A packet to the guest without data, credit and flags.
fn answer(cid: u64, ports: Ports, op: u16) -> Header {
    Header {
        src_cid: HOST,
        dst_cid: cid,
        src_port: ports.host,
        dst_port: ports.guest,
        kind: STREAM,
        op,
        ..Header::default()
    }
}
