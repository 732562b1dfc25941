//! Programs of the host that connect to the device's socket: each says in one line which port of the guest it wants,
//! and is a stream from then on. Those that have not said it are few, and the oldest makes way.

use std::io;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{RecvFlags, recv};

use super::packet::op;
use super::stream::{Ports, Stream};
use super::{Client, FIRST_PORT, MAX_CLIENTS, MAX_STREAMS, Vsock};

/// The longest line of a client: `CONNECT 4294967295` and some blanks.
const MAX_LINE: usize = 32;

impl Vsock {
    /// Takes new clients. Says whether there may be more.
    pub(super) fn accept(&mut self) -> bool {
        for _ in 0..MAX_CLIENTS {
            // None left, or none for want of descriptors: the next event tries again.
            let Ok((socket, _)) = self.listener.listener().accept() else {
                return false;
            };
            if self.clients.len() >= MAX_CLIENTS
                && let Some(oldest) = self.clients.keys().next().copied()
            {
                // Unless it has spoken meanwhile, it has been silent for longest.
                self.hear(oldest);
                self.clients.remove(&oldest);
            }
            let number = self.number();
            let data = EventData::new_u64(number);
            if socket.set_nonblocking(true).is_ok()
                && epoll::add(&self.epoll, &socket, data, EventFlags::IN).is_ok()
            {
                let line = Vec::new();
                self.clients.insert(number, Client { socket, line });
            }
        }
        true
    }

    /// A client says where to connect. Not a byte beyond its line is read.
    pub(super) fn hear(&mut self, number: u64) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        let mut space = [0; MAX_LINE];
        let room = space.get_mut(client.line.len()..).unwrap_or_default();
        let ready = match recv(&client.socket, &mut *room, RecvFlags::PEEK) {
            Ok((len @ 1.., _)) => room.get(..len).unwrap_or_default(),
            Err(error) if io::Error::from(error).kind() == io::ErrorKind::WouldBlock => return,
            // Gone, or its line is too long.
            _ => {
                self.clients.remove(&number);
                return;
            }
        };
        let end = ready.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(ready.len(), |end| end + 1);
        client.line.extend(ready.iter().take(taken));
        let mut rest = [0; MAX_LINE];
        let rest = rest.get_mut(..taken).unwrap_or_default();
        let is_read = recv(&client.socket, rest, RecvFlags::empty()).is_ok();
        if end.is_none() && is_read && client.line.len() < MAX_LINE {
            return;
        }
        if let Some(Client { socket, line }) = self.clients.remove(&number)
            && let Some(guest) = parse_connect(&line)
            && is_read
            && self.has_place()
            && epoll::delete(&self.epoll, &socket).is_ok()
        {
            let ports = Ports {
                host: self.free_port(guest),
                guest,
            };
            self.counts.accepted();
            self.add(Stream::new(socket, ports, op::REQUEST, None));
        }
    }

    /// A port of the host that has no stream with this one of the guest.
    fn free_port(&mut self, guest: u32) -> u32 {
        // There are far more ports than streams.
        for _ in 0..=MAX_STREAMS {
            let host = self.next_port;
            self.next_port = FIRST_PORT | self.next_port.wrapping_add(1) & (FIRST_PORT - 1);
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
        self.next_port
    }
}

/// The port of `CONNECT port`.
fn parse_connect(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (word, port) = line.trim_end().split_once(' ')?;
    let port = port.trim().parse().ok()?;
    word.eq_ignore_ascii_case("connect").then_some(port)
}
