//! What a server needs to know of a protocol: how bytes become requests and answers bytes. Connections, their limits
//! and deadlines are the server's.

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// A protocol, and what answers its requests. One thread calls it for all clients.
pub trait Service: Send + 'static {
    /// What is known of one client.
    type Client: Send;

    /// What clients may have and do.
    fn limits(&self) -> ClientLimits;

    /// A thread begins that calls the others: called on it first, and again when the server goes on after it was parked.
    fn begin(&mut self) {}

    /// A client has come. Puts into `output` what it is told first.
    fn greet(&mut self, output: &mut Vec<u8>) -> Self::Client;

    /// Takes one request off the input, if there is a whole one, and puts its answer into `output`.
    fn serve(&mut self, client: &mut Self::Client, input: &mut Input, output: &mut Vec<u8>)
    -> Next;

    /// A client's request was not whole in time, and the connection ends. Puts into `output` what it is told of that.
    fn late(&mut self, _client: &mut Self::Client, _output: &mut Vec<u8>) {}

    /// Readable when there is something to tell this client unasked. A client that listens so is the last to go when
    /// there are too many.
    fn watched(client: &Self::Client) -> Option<BorrowedFd<'_>> {
        let _ = client;
        None
    }

    /// Puts into `output` what there is to tell unasked, no more than the limit of bytes that wait.
    fn tell(&mut self, _client: &mut Self::Client, _output: &mut Vec<u8>) {}
}

/// What the clients of a socket may have and do.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClientLimits {
    /// Clients at a time. Another one takes the place of the one that has been silent the longest.
    pub clients: usize,
    /// Bytes of a client that wait for the rest of their request; with as many, it is not read from.
    pub input: usize,
    /// Bytes of answers that wait for a client; with as many, no further request of it is looked at.
    pub output: usize,
    /// How long a request may take from its first byte to its last.
    pub request: Option<Duration>,
    /// How long a client may leave answers where they are.
    pub answer: Option<Duration>,
}

impl ClientLimits {
    /// Limits without deadlines.
    #[must_use]
    pub fn new(clients: usize, input: usize, output: usize) -> Self {
        Self {
            clients,
            input,
            output,
            request: None,
            answer: None,
        }
    }

    /// Sets how long a request may take, and how long answers may wait for a client.
    #[must_use]
    pub fn with_deadlines(mut self, request: Duration, answer: Duration) -> Self {
        self.request = Some(request);
        self.answer = Some(answer);
        self
    }
}

/// What becomes of a connection after [`Service::serve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Next {
    /// A request was taken; there may be another one.
    Again,
    /// There is nothing of a request.
    Idle,
    /// The rest of a request has to come.
    Wait,
    /// The answer to a request comes later, and the next request has to wait for that.
    Pending,
    /// The connection ends when the client has fetched everything.
    Close,
}

/// What a client has sent and nobody has taken yet.
#[derive(Debug, Default)]
pub struct Input {
    pub(super) bytes: Vec<u8>,
    /// Descriptors that have come, each with the place in `bytes` of the last byte of its message.
    pub(super) files: VecDeque<(usize, OwnedFd)>,
    pub(super) ended: bool,
}

impl Input {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether nothing more will come.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes the first `len` bytes, and the descriptors that came with them.
    pub fn take(&mut self, len: usize) -> (Vec<u8>, Vec<OwnedFd>) {
        let taken: Vec<u8> = self.bytes.drain(..len.min(self.bytes.len())).collect();
        let len = taken.len();
        let own = self.files.iter().take_while(|(at, _)| *at < len).count();
        let files = self.files.drain(..own).map(|(_, file)| file).collect();
        for (at, _) in &mut self.files {
            *at -= len;
        }
        (taken, files)
    }
}
