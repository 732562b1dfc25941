//! One client of the control socket: what it has sent and was not read yet, and what it has not fetched yet. Both
//! are bounded: who does not read is not read from either.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::protocol::{self, Line, MAX_LINE, Wish};
use crate::control::event::Subscription;
use crate::control::handle::VmHandle;

/// Answers that wait for a client; with as many, no further request of it is looked at.
const MAX_WAITING: usize = 64 << 10;
/// Descriptors of one client that wait for their request: more than any takes.
const MAX_FILES: usize = 8;
/// Requests of one client that are answered before the others have their turn.
const TURN: usize = 16;

/// What is still to come from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Incoming {
    Open,
    /// No more than what was read already.
    Ended,
    /// Nothing.
    Done,
}

#[derive(Debug)]
pub(super) struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    /// Descriptors that have come, each with the place in `input` of the last byte of its message.
    files: VecDeque<(usize, OwnedFd)>,
    output: Vec<u8>,
    /// Its kinds of events, all if there are none.
    subscription: Option<(Subscription, Vec<String>)>,
    incoming: Incoming,
    /// It is to be closed once it has fetched everything.
    closing: bool,
    pub(super) active: Instant,
}

impl Client {
    /// A client that has just come.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            files: VecDeque::new(),
            output: protocol::greeting(),
            subscription: None,
            incoming: Incoming::Open,
            closing: false,
            active: Instant::now(),
        })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn subscription(&self) -> Option<&Subscription> {
        self.subscription.as_ref().map(|(events, _)| events)
    }

    /// Whether it makes sense to read from it.
    pub(super) fn wants_input(&self) -> bool {
        self.incoming == Incoming::Open
            && !self.closing
            && self.may_answer()
            && self.input.len() <= MAX_LINE
    }

    pub(super) fn wants_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether there is something to do without anything new from it.
    pub(super) fn has_work(&self) -> bool {
        !self.closing
            && self.may_answer()
            && (self.incoming == Incoming::Ended || self.line_end().is_some())
    }

    /// Whether nothing more comes from it, so that it is gone when its other side is closed too.
    pub(super) fn is_done(&self) -> bool {
        self.incoming == Incoming::Done
    }

    fn may_answer(&self) -> bool {
        self.output.len() < MAX_WAITING
    }

    fn line_end(&self) -> Option<usize> {
        self.input.iter().position(|byte| *byte == b'\n')
    }

    /// Reads what is there.
    pub(super) fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        let (len, files) = match receive(&self.stream, &mut buffer) {
            Ok(received) => received,
            Err(error) if is_temporary(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        if len == 0 {
            self.incoming = Incoming::Ended;
            return Ok(());
        }
        self.active = Instant::now();
        self.input.extend(buffer.iter().take(len));
        let last = self.input.len() - 1;
        self.files
            .extend(files.into_iter().map(|file| (last, file)));
        if self.files.len() > MAX_FILES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }

    /// Takes the first bytes of the input, and the descriptors that came with them.
    fn take(&mut self, len: usize) -> (Vec<u8>, Vec<OwnedFd>) {
        let line = self.input.drain(..len).collect();
        let own = self.files.iter().take_while(|(at, _)| *at < len).count();
        let files = self.files.drain(..own).map(|(_, file)| file).collect();
        for (at, _) in &mut self.files {
            *at -= len;
        }
        (line, files)
    }

    /// Answers some of its requests.
    pub(super) fn serve(&mut self, handle: &VmHandle) {
        for _ in 0..TURN {
            let at_end = self.incoming != Incoming::Open;
            if self.closing || !self.may_answer() {
                return;
            }
            match self.line_end() {
                Some(end) if end <= MAX_LINE => {
                    let (line, files) = self.take(end + 1);
                    let line = line.strip_suffix(b"\n").unwrap_or(&line);
                    if !line.trim_ascii().is_empty() {
                        self.answer(protocol::parse(line), files, handle);
                    }
                }
                None if self.input.len() <= MAX_LINE && !at_end => return,
                None if at_end && self.input.trim_ascii().is_empty() => {
                    self.incoming = Incoming::Done;
                    // Who has shut down its side may go on listening to events.
                    self.closing = self.subscription.is_none();
                    return;
                }
                // The last line lacks its end.
                None if at_end => {
                    let (line, files) = self.take(self.input.len());
                    self.answer(protocol::parse(&line), files, handle);
                }
                _ => {
                    let text = format!("a line has {MAX_LINE} bytes at most");
                    self.output.extend(protocol::refusal(None, &text));
                    self.closing = true;
                }
            }
        }
    }

    fn answer(&mut self, line: Line, files: Vec<OwnedFd>, handle: &VmHandle) {
        let id = line.id.as_ref();
        let answer = match line.wish {
            Ok(Wish::Command(command)) => {
                let result = handle.command_with(command, files);
                protocol::answer(id, &result)
            }
            Ok(Wish::Subscribe(kinds)) => match handle.subscribe() {
                Ok(events) => {
                    self.subscription = Some((events, kinds));
                    protocol::subscribed(id)
                }
                Err(error) => protocol::refusal(id, &error.to_string()),
            },
            Err(cause) => protocol::refusal(id, &cause),
        };
        self.output.extend(answer);
    }

    /// Takes over the events that it has subscribed to, as far as there is room.
    pub(super) fn take_events(&mut self) {
        while self.may_answer()
            && let Some((events, kinds)) = &self.subscription
            && let Some(event) = events.try_next()
        {
            let name = event.what.name();
            if kinds.is_empty() || name == "lost" || kinds.iter().any(|kind| kind == name) {
                self.output.extend(protocol::event(&event));
            }
        }
    }

    /// Writes what it takes; says whether it stays.
    pub(super) fn write(&mut self) -> io::Result<bool> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => break,
                Ok(len) => drop(self.output.drain(..len)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_temporary(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(!(self.closing && self.output.is_empty()))
    }
}

/// Reads bytes, and the descriptors that were sent with them.
fn receive(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
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
