//! A host of one service on the link of a guest's network device: it answers ARP, and TCP on port 80.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::answer;
use super::connection::{Connection, Fate};
use super::store::Mmds;
use super::wire::{self, Frame, HEADERS, Header, Peer, Segment, flag};
use crate::metrics;

/// The port of HTTP.
const PORT: u16 = 80;
/// Connections at a time.
const CONNECTIONS: usize = 30;
/// How long a connection has been silent that makes room for another one.
const SILENCE: Duration = Duration::from_secs(5);
/// Single segments that wait: last words, and refusals.
const WORDS: usize = 64;
/// Between the first numbers of two connections.
const STRIDE: u32 = 64_021;

/// A metadata service on a guest's link. It is pure: frames and times go in, frames come out.
#[derive(Debug)]
pub struct Stack {
    address: Ipv4Addr,
    mmds: Arc<Mutex<Mmds>>,
    connections: Vec<Connection>,
    /// Whose turn to send it is.
    turn: usize,
    /// Who has asked for our hardware address.
    question: Option<Peer>,
    words: Vec<Header>,
    /// The first number of the next connection.
    first: u32,
}

fn count(key: &'static str) {
    metrics::count("mmds", key);
}

impl Stack {
    /// One that is at this address and has this content. `first` is any number, which the first connection begins with.
    #[must_use]
    pub fn new(address: Ipv4Addr, mmds: Arc<Mutex<Mmds>>, first: u32) -> Self {
        Self {
            address,
            mmds,
            connections: Vec::new(),
            turn: 0,
            question: None,
            words: Vec::new(),
            first,
        }
    }

    /// Whether a frame that begins so is for the service.
    #[must_use]
    pub fn wants(&self, start: &[u8]) -> bool {
        wire::is_for(self.address, start)
    }

    /// Takes a frame that is for the service.
    pub fn take(&mut self, frame: &[u8], now: Instant) {
        count("rx_accepted");
        match wire::read(frame) {
            Frame::Question(peer) => self.question = Some(peer),
            Frame::Segment(segment) => {
                count("rx_count");
                self.segment(&segment, now);
            }
            Frame::Unusual => count("rx_accepted_unusual"),
            Frame::Wrong => count("rx_accepted_err"),
        }
    }

    fn segment(&mut self, segment: &Segment<'_>, now: Instant) {
        let is_it = |connection: &Connection| {
            let peer = connection.peer;
            (peer.address, peer.port) == (segment.peer.address, segment.peer.port)
        };
        let place = match segment.port {
            PORT => self.connections.iter().position(is_it),
            _ => None,
        };
        let Some(place) = place else {
            self.stranger(segment, now);
            return;
        };
        let mmds = &self.mmds;
        let mut serve = |input: &[u8]| {
            let mut mmds = mmds.lock().unwrap_or_else(PoisonError::into_inner);
            answer::serve(&mut mmds, input)
        };
        let Some(connection) = self.connections.get_mut(place) else {
            return;
        };
        // It may have come to another station.
        connection.peer.mac = segment.peer.mac;
        let last = match connection.receive(segment, now, &mut serve) {
            Fate::Lives => return,
            Fate::Broken => None,
            Fate::Ended => Some(connection.last()),
        };
        self.remove(place);
        self.say(last);
    }

    /// A segment of no connection.
    fn stranger(&mut self, segment: &Segment<'_>, now: Instant) {
        const KINDS: u8 = flag::SYN | flag::ACK | flag::RST | flag::FIN;
        if segment.has(flag::RST) {
            return;
        }
        let is_syn = segment.flags & KINDS == flag::SYN;
        if is_syn && segment.port == PORT && self.make_room(now) {
            count("connections_created");
            self.connections
                .push(Connection::new(segment, self.first, now));
            self.first = self.first.wrapping_add(STRIDE);
            return;
        }
        // RFC 9293, 3.5.2.
        let length = u32::try_from(segment.data.len()).unwrap_or_default();
        let numbers =
            length + u32::from(segment.has(flag::SYN)) + u32::from(segment.has(flag::FIN));
        let (seq, flags) = match segment.has(flag::ACK) {
            true => (segment.ack, flag::RST),
            false => (0, flag::RST | flag::ACK),
        };
        self.say(Some(Header {
            to: segment.peer,
            from: segment.port,
            seq,
            ack: segment.seq.wrapping_add(numbers),
            flags,
            window: 0,
        }));
    }

    /// Whether there can be one more connection.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.connections.len() < CONNECTIONS {
            return true;
        }
        let silent = |connection: &Connection| now.saturating_duration_since(connection.heard);
        let places = self.connections.iter().map(silent).enumerate();
        match places.max_by_key(|(_, silence)| *silence) {
            Some((place, silence)) if silence >= SILENCE => {
                self.remove(place);
                true
            }
            _ => false,
        }
    }

    fn remove(&mut self, place: usize) -> Connection {
        count("connections_destroyed");
        self.connections.swap_remove(place)
    }

    /// A word that nobody answers. When there are too many it is lost, and said again if it is asked for again.
    fn say(&mut self, word: Option<Header>) {
        if self.words.len() < WORDS {
            self.words.extend(word);
        }
    }

    /// Writes the next frame for the guest; gives its length, or 0 when there is none now.
    pub fn give(&mut self, room: &mut [u8], now: Instant) -> usize {
        let len = self.write(room, now).unwrap_or_default();
        if len > 0 {
            count("tx_count");
            count("tx_frames");
            metrics::add("mmds", "tx_bytes", len as u64);
        }
        len
    }

    fn write(&mut self, room: &mut [u8], now: Instant) -> Option<usize> {
        if let Some(peer) = self.question.take() {
            return wire::write_answer(room, peer, self.address);
        }
        let lost = self
            .connections
            .iter_mut()
            .position(|connection| connection.tick(now));
        if let Some(place) = lost {
            let word = self.remove(place).reset();
            self.say(Some(word));
        }
        if !self.words.is_empty() {
            let word = self.words.remove(0);
            return wire::write_segment(room, &word, self.address, &[]);
        }
        // Room for no data at all would be a reason to ask again and again.
        let most = room.len().checked_sub(HEADERS).filter(|most| *most > 0)?;
        let count = self.connections.len();
        for _ in 0..count {
            self.turn = self.turn.wrapping_add(1) % count;
            let connection = self.connections.get_mut(self.turn)?;
            if let Some((header, data)) = connection.send(most, now) {
                return wire::write_segment(room, &header, self.address, data);
            }
        }
        None
    }

    /// When there may be a frame although none has come.
    #[must_use]
    pub fn wakes_at(&self) -> Option<Instant> {
        let connections = self.connections.iter();
        connections.filter_map(Connection::deadline).min()
    }

    /// The guest's driver begins anew: nobody is there who had a connection.
    pub fn reset(&mut self) {
        while !self.connections.is_empty() {
            self.remove(0);
        }
        (self.question, self.words) = (None, Vec::new());
    }
}
