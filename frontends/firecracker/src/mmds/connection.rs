//! A TCP connection of a guest's to the service (RFC 9293): passive, with data in order only, without options but the
//! largest segment. The link is memory and loses nothing, but a guest may, and a saved machine has: what is not
//! acknowledged comes again.

use std::time::{Duration, Instant};

use super::wire::{Header, Peer, Segment, flag};

/// The most bytes of requests that wait, and so the longest request.
pub(super) const INPUT: usize = 4096;
/// Until what was not acknowledged is sent again, for the first time; then twice as long, and so on.
const PATIENCE: Duration = Duration::from_millis(300);
/// How often it is sent again. The last time ends half a minute after the first.
const RETRIES: u32 = 6;
/// What any host takes in one segment (RFC 9293, 3.7.1), and what no peer may go below: each segment costs a frame.
const DEFAULT_MSS: u16 = 536;
const LEAST_MSS: u16 = 88;

/// What comes of the bytes of a client.
#[derive(Debug)]
pub(super) enum Served {
    /// No request is whole.
    Nothing,
    /// So many bytes were one, which has this answer.
    Answer {
        used: usize,
        answer: Vec<u8>,
        close: bool,
    },
}

/// What is known of a connection after a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Lives,
    /// The peer has broken it off.
    Broken,
    /// Both sides have ended it, and the peer waits for a last word.
    Ended,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: Peer,
    port: u16,
    /// The peer's first number.
    peer_first: u32,
    /// The next byte of the peer's.
    next: u32,
    input: Vec<u8>,
    /// The peer sends nothing more.
    peer_done: bool,
    /// Our first number that is not acknowledged.
    unacked: u32,
    /// Our next number to send: behind `unacked` again when something is lost.
    sending: u32,
    /// Behind the last number that was ever sent.
    highest: u32,
    /// Our SYN is acknowledged.
    is_open: bool,
    /// The answer that is under way.
    output: Vec<u8>,
    /// How much of it is acknowledged, up to `unacked`.
    arrived: usize,
    /// We send nothing behind `output`.
    closing: bool,
    /// The peer knows that.
    end_acked: bool,
    /// The peer's window.
    window: u16,
    mss: u16,
    /// The peer waits for a word.
    answer_due: bool,
    /// The peer's window was closed for too long: one byte asks for it.
    probing: bool,
    /// When what was sent counts as lost.
    deadline: Option<Instant>,
    retries: u32,
    /// When the peer was last heard.
    pub(super) heard: Instant,
}

/// How far `later` is behind `earlier`, if it is (RFC 9293, 3.4).
fn distance(earlier: u32, later: u32) -> Option<usize> {
    let distance = later.wrapping_sub(earlier);
    (distance < 1 << 31).then_some(distance as usize)
}

fn length(bytes: usize) -> u32 {
    // Of a segment, or of an answer.
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl Connection {
    /// One that a peer asks for. `first` is our first number.
    pub(super) fn new(syn: &Segment<'_>, first: u32, now: Instant) -> Self {
        Self {
            peer: syn.peer,
            port: syn.port,
            peer_first: syn.seq,
            next: syn.seq.wrapping_add(1),
            input: Vec::new(),
            peer_done: false,
            unacked: first,
            sending: first,
            highest: first,
            is_open: false,
            output: Vec::new(),
            arrived: 0,
            closing: false,
            end_acked: false,
            window: syn.window,
            mss: syn.mss.unwrap_or(DEFAULT_MSS).max(LEAST_MSS),
            answer_due: false,
            probing: false,
            deadline: None,
            retries: 0,
            heard: now,
        }
    }

    /// Takes a segment of the peer's. `serve` makes answers of its bytes.
    pub(super) fn receive(
        &mut self,
        segment: &Segment<'_>,
        now: Instant,
        serve: &mut impl FnMut(&[u8]) -> Served,
    ) -> Fate {
        self.heard = now;
        if segment.has(flag::RST) {
            // RFC 5961, 3.2: only with the very number; other hosts are not on this link.
            return match segment.seq == self.next {
                true => Fate::Broken,
                false => Fate::Lives,
            };
        }
        if segment.has(flag::SYN) {
            if !self.is_open && segment.seq == self.peer_first {
                // Ours was lost.
                self.sending = self.unacked;
            } else {
                self.answer_due = true;
            }
            return Fate::Lives;
        }
        if !segment.has(flag::ACK) {
            return Fate::Lives;
        }
        let acked = distance(self.unacked, segment.ack);
        let sent = distance(self.unacked, self.highest).unwrap_or_default();
        match acked {
            Some(acked) if acked > sent => {
                self.answer_due = true;
                return Fate::Lives;
            }
            Some(acked) => self.acknowledge(acked, now),
            // An old one may bring new data.
            None => {}
        }
        if !self.is_open {
            return Fate::Lives;
        }
        self.window = segment.window;
        self.take(segment);
        self.serve(serve);
        match self.peer_done && self.end_acked {
            true => Fate::Ended,
            false => Fate::Lives,
        }
    }

    /// The peer has so many of what we have sent.
    fn acknowledge(&mut self, acked: usize, now: Instant) {
        if acked == 0 {
            return;
        }
        self.unacked = self.unacked.wrapping_add(length(acked));
        if distance(self.sending, self.unacked).is_some() {
            self.sending = self.unacked;
        }
        let data = if self.is_open { acked } else { acked - 1 };
        self.is_open = true;
        // Our FIN is behind all of it.
        self.end_acked |= data > self.rest().len();
        self.arrived += data.min(self.rest().len());
        if self.rest().is_empty() {
            (self.output, self.arrived) = (Vec::new(), 0);
        }
        self.retries = 0;
        self.probing = false;
        let under_way = self.unacked != self.sending;
        self.deadline = under_way.then(|| now + PATIENCE);
    }

    /// What is not acknowledged, from `unacked` on.
    fn rest(&self) -> &[u8] {
        self.output.get(self.arrived..).unwrap_or_default()
    }

    /// Takes what is the next of the peer's data.
    fn take(&mut self, segment: &Segment<'_>) {
        if segment.data.is_empty() && !segment.has(flag::FIN) {
            return;
        }
        // Whatever comes of it, the peer is told how far we are.
        self.answer_due = true;
        let known = distance(segment.seq, self.next);
        let Some(new) = known.and_then(|known| segment.data.get(known..)) else {
            return;
        };
        if self.peer_done || self.closing {
            // Nobody reads it.
            self.next = self.next.wrapping_add(length(new.len()));
        } else {
            let part = new.get(..INPUT - self.input.len()).unwrap_or(new);
            self.input.extend_from_slice(part);
            self.next = self.next.wrapping_add(length(part.len()));
            if part.len() < new.len() {
                return;
            }
        }
        if segment.has(flag::FIN) && !self.peer_done {
            self.next = self.next.wrapping_add(1);
            self.peer_done = true;
        }
    }

    /// Answers a request if the answer before it has arrived.
    fn serve(&mut self, serve: &mut impl FnMut(&[u8]) -> Served) {
        if !self.output.is_empty() || self.closing {
            return;
        }
        match serve(&self.input) {
            Served::Answer {
                used,
                answer,
                close,
            } => {
                self.input.drain(..used.min(self.input.len()));
                self.output = answer;
                self.closing = close;
            }
            Served::Nothing => self.closing = self.peer_done,
        }
        if self.closing {
            self.input = Vec::new();
        }
    }

    /// Looks at the time. Says whether what was sent is lost for ever.
    pub(super) fn tick(&mut self, now: Instant) -> bool {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return false;
        }
        self.deadline = None;
        self.retries += 1;
        self.probing = true;
        self.sending = self.unacked;
        self.retries > RETRIES
    }

    /// When to look at the time.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The next segment for the peer, whose data has at most so many bytes.
    pub(super) fn send(&mut self, most: usize, now: Instant) -> Option<(Header, &[u8])> {
        let seq = self.sending;
        if !self.is_open {
            if seq != self.unacked {
                return None;
            }
            self.sent(1, now);
            return Some((self.header(seq, flag::SYN | flag::ACK), &[]));
        }
        let under_way = distance(self.unacked, seq).unwrap_or_default();
        // A closed window is asked for with a byte.
        let window = usize::from(self.window).max(usize::from(self.probing));
        let room = window.saturating_sub(under_way);
        let all = self.rest().len();
        let rest = all.saturating_sub(under_way);
        let whole = most.min(self.mss.into());
        let mut size = rest.min(room).min(whole);
        // Windows that open by a few bytes are not filled byte by byte (RFC 9293, 3.8.6.2.1).
        if size < rest && size < whole && under_way > 0 {
            size = 0;
        }
        if rest > 0 && size == 0 && self.deadline.is_none() {
            // Nobody may ever open the window.
            self.arm(now);
        }
        // It has the number behind all data, once.
        let has_end = under_way > all || self.end_acked;
        let fits_end = self.closing && size == rest && !has_end;
        if size == 0 && !fits_end {
            return std::mem::take(&mut self.answer_due)
                .then(|| (self.header(seq, flag::ACK), &[][..]));
        }
        let mut flags = flag::ACK;
        if size > 0 {
            flags |= flag::PSH;
        }
        if fits_end {
            flags |= flag::FIN;
        }
        self.sent(length(size) + u32::from(fits_end), now);
        let header = self.header(seq, flags);
        let data = self.rest().get(under_way..under_way + size);
        Some((header, data.unwrap_or_default()))
    }

    /// So many numbers go out.
    fn sent(&mut self, numbers: u32, now: Instant) {
        self.sending = self.sending.wrapping_add(numbers);
        if distance(self.highest, self.sending).is_some() {
            self.highest = self.sending;
        }
        self.answer_due = false;
        if self.deadline.is_none() {
            self.arm(now);
        }
    }

    fn arm(&mut self, now: Instant) {
        self.deadline = Some(now + PATIENCE * 2u32.pow(self.retries.min(RETRIES)));
    }

    fn header(&self, seq: u32, flags: u8) -> Header {
        Header {
            to: self.peer,
            from: self.port,
            seq,
            ack: self.next,
            flags,
            window: u16::try_from(INPUT - self.input.len()).unwrap_or_default(),
        }
    }

    /// The last word of one that has ended.
    pub(super) fn last(&self) -> Header {
        self.header(self.sending, flag::ACK)
    }

    /// What breaks it off.
    pub(super) fn reset(&self) -> Header {
        self.header(self.sending, flag::RST | flag::ACK)
    }
}
