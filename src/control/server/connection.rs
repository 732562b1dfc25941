//! One connection: what has come from its client and was not looked at yet, and what that has not fetched yet. Both
//! are bounded: who does not read is not read from either.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::service::{ClientLimits, Input, Next, Service};

/// The most descriptors of one client that wait for their request.
pub const MAX_DESCRIPTORS: usize = 32;
/// Requests of one client that are answered before the others have their turn.
const TURN: usize = 16;

#[derive(Debug)]
pub(super) struct Connection<S: Service> {
    stream: UnixStream,
    client: S::Client,
    input: Input,
    output: Vec<u8>,
    /// The answer to a request is still to come.
    pending: bool,
    /// There may be another request in the input.
    has_rest: bool,
    /// Nothing more comes from it, and all that came was looked at.
    done: bool,
    /// It is to be closed once it has fetched everything.
    closing: bool,
    /// It has, and may read that before what it still sends is refused.
    lingering: Option<Instant>,
    /// When it began the request whose rest is still to come.
    begun: Option<Instant>,
    /// When it last fetched something of what waits for it.
    fetched: Option<Instant>,
    pub(super) active: Instant,
}

impl<S: Service> Connection<S> {
    /// A client that has just come.
    pub(super) fn new(stream: UnixStream, service: &mut S) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let mut output = Vec::new();
        Ok(Self {
            stream,
            client: service.greet(&mut output),
            input: Input::default(),
            output,
            pending: false,
            has_rest: false,
            done: false,
            closing: false,
            lingering: None,
            begun: None,
            fetched: None,
            active: Instant::now(),
        })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn client(&self) -> &S::Client {
        &self.client
    }

    /// Whether it makes sense to read from it.
    pub(super) fn wants_input(&self, limits: &ClientLimits) -> bool {
        let lingers = self.lingering.is_some();
        !self.input.ended
            && (lingers || !self.closing)
            && self.output.len() < limits.output
            && self.input.bytes.len() <= limits.input
    }

    pub(super) fn wants_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether there is something to do without anything new from it.
    pub(super) fn has_work(&self, limits: &ClientLimits) -> bool {
        self.has_rest && !self.closing && self.output.len() < limits.output
    }

    /// Whether the answer to a request is still to come.
    pub(super) fn is_pending(&self) -> bool {
        self.pending
    }

    /// Whether nothing more comes from it or nothing is done for it just now, so that it is gone when its other side is
    /// closed too.
    pub(super) fn is_done(&self) -> bool {
        self.done || self.pending
    }

    /// When something has to have come from it, or to have been fetched by it.
    pub(super) fn deadline(&self, limits: &ClientLimits) -> Option<Instant> {
        let at = |since: Option<Instant>, limit: Option<Duration>| since?.checked_add(limit?);
        let request = at(self.begun, limits.request).filter(|_| !self.closing);
        let answer = at(self.fetched.or(self.lingering), limits.answer);
        request.into_iter().chain(answer).min()
    }

    /// Ends what has taken too long; says whether the connection stays.
    pub(super) fn check_deadline(&mut self, limits: &ClientLimits, service: &mut S) -> bool {
        let is_over = self
            .deadline(limits)
            .is_some_and(|deadline| deadline <= Instant::now());
        if !is_over {
            return true;
        }
        if self.begun.take().is_none() || self.closing {
            return false;
        }
        service.late(&mut self.client, &mut self.output);
        self.closing = true;
        true
    }

    /// Reads what is there.
    pub(super) fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        let (len, files) = match receive(&self.stream, &mut buffer) {
            Ok(received) => received,
            Err(error) if is_temporary(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        self.has_rest = true;
        if len == 0 {
            self.input.ended = true;
            return Ok(());
        }
        if self.lingering.is_some() {
            return Ok(());
        }
        self.active = Instant::now();
        self.input.bytes.extend(buffer.iter().take(len));
        let last = self.input.bytes.len() - 1;
        let files = files.into_iter().map(|file| (last, file));
        self.input.files.extend(files);
        if self.input.files.len() > MAX_DESCRIPTORS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }

    /// Answers some of its requests.
    pub(super) fn serve(&mut self, limits: &ClientLimits, service: &mut S) {
        for _ in 0..TURN {
            let is_idle = !self.has_rest && !self.pending;
            if is_idle || self.closing || self.output.len() >= limits.output {
                return;
            }
            let next = service.serve(&mut self.client, &mut self.input, &mut self.output);
            self.pending = next == Next::Pending;
            self.has_rest = matches!(next, Next::Again | Next::Pending);
            match next {
                Next::Again => self.begun = None,
                Next::Idle | Next::Wait => {
                    self.done = self.input.ended;
                    let begun = self.begun.get_or_insert_with(Instant::now);
                    self.begun = (next == Next::Wait).then_some(*begun);
                    return;
                }
                Next::Pending => {
                    self.begun = None;
                    // Its answer sets the server's wake.
                    self.has_rest = false;
                    return;
                }
                Next::Close => {
                    self.done = self.input.ended;
                    self.closing = true;
                    return;
                }
            }
        }
    }

    /// Takes over what there is to tell it unasked, as far as there is room.
    pub(super) fn tell(&mut self, limits: &ClientLimits, service: &mut S) {
        if self.output.len() < limits.output {
            service.tell(&mut self.client, &mut self.output);
        }
    }

    /// Writes what it takes; says whether it stays.
    pub(super) fn write(&mut self, limits: &ClientLimits) -> io::Result<bool> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => break,
                Ok(len) => {
                    self.output.drain(..len);
                    self.fetched = None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_temporary(&error) => {
                    self.fetched.get_or_insert_with(Instant::now);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if !self.closing || !self.output.is_empty() {
            return Ok(true);
        }
        // Closed with bytes that nobody has read, the socket would take back what its other side has not fetched.
        if self.lingering.is_none() && limits.answer.is_some() {
            self.stream.shutdown(Shutdown::Write)?;
            self.lingering = Some(Instant::now());
        }
        Ok(self.lingering.is_some() && !self.input.ended)
    }
}

/// Reads bytes, and the descriptors that were sent with them.
fn receive(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let received = recvmsg(
        stream,
        &mut parts,
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok((received.bytes, files))
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
