//! A VM's control socket, from another process.

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use vmm_reference::{Error, MAX_DESCRIPTORS, PROTOCOL};

/// The longest line of an answer, in bytes.
const MAX_LINE: u64 = 1 << 20;
/// How long a VM may take for an answer, and for its greeting.
const PATIENCE: Duration = Duration::from_secs(60);
const GREETING: Duration = Duration::from_secs(5);
/// How long a VM that ends may keep its socket.
const LETS_GO: Duration = Duration::from_secs(5);

/// A VM's control socket.
pub(super) struct Connection<'a> {
    pub(super) path: &'a Path,
    stream: BufReader<UnixStream>,
}

impl<'a> Connection<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Self, Error> {
        let refuse = |cause: String| Error::Config {
            field: "control".into(),
            value: path.display().to_string(),
            cause,
            cure: "name the socket of a VM that was started with --control=PATH, as the same user"
                .to_owned(),
        };
        let is_socket = std::fs::metadata(path).map(|found| found.file_type().is_socket());
        if is_socket.is_ok_and(|is_socket| !is_socket) {
            return Err(refuse("it is no socket".to_owned()));
        }
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::ConnectionRefused => {
                refuse("nobody listens there: its VM is gone".to_owned())
            }
            _ => refuse(error.to_string()),
        })?;
        let patience = |stream: &UnixStream, time| {
            let set = stream.set_read_timeout(Some(time));
            set.map_err(|error| refuse(error.to_string()))
        };
        patience(&stream, GREETING)?;
        let mut connection = Self {
            path,
            stream: BufReader::new(stream),
        };
        let greeting = connection.value().map_err(|error| match error {
            Error::Host { source, .. } if source.kind() == std::io::ErrorKind::WouldBlock => {
                connection.strange("it is no control socket: it says nothing")
            }
            error => error,
        })?;
        patience(connection.stream.get_ref(), PATIENCE)?;
        match greeting.get("protocol").and_then(Value::as_u64) {
            Some(version) if version == u64::from(PROTOCOL) => Ok(connection),
            Some(version) => Err(connection.strange(&format!(
                "its protocol has version {version}, this program knows {PROTOCOL}"
            ))),
            None => Err(connection.strange("it is no control socket")),
        }
    }

    /// Asks, with files that go with the request; gives what the answer has under "ok", or else under "error".
    pub(super) fn ask(
        &mut self,
        request: &Value,
        files: &[BorrowedFd<'_>],
    ) -> Result<Result<Value, Value>, Error> {
        self.tell(request, files)?;
        self.answer()
    }

    /// Asks, without waiting for the answer. On an error the VM has not got the request in full, and does nothing.
    pub(super) fn tell(&mut self, request: &Value, files: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let sent = send(self.stream.get_mut(), &format!("{request}\n"), files);
        sent.map_err(|error| self.failed(error))
    }

    /// The answer to what was asked for.
    pub(super) fn answer(&mut self) -> Result<Result<Value, Value>, Error> {
        let mut answer = self.value()?;
        Ok(match answer.get_mut("error") {
            Some(error) => Err(error.take()),
            None => Ok(answer.get_mut("ok").map(Value::take).unwrap_or_default()),
        })
    }

    /// The error for what the VM says under "error".
    pub(super) fn refused(&self, refusal: &Value) -> Error {
        let message = refusal.get("message").and_then(Value::as_str);
        Error::Host {
            what: format!("{}", self.path.display()),
            source: std::io::Error::other(message.unwrap_or("it was refused").to_owned()),
        }
    }

    /// Waits until the VM, which was told to end, has let go of everything: of this connection, and of the path of its
    /// socket, which is the last that it has. A VM whose output nobody takes is not waited for.
    pub(super) fn wait_for_end(mut self) {
        let begin = Instant::now();
        let left = || LETS_GO.checked_sub(begin.elapsed());
        while let Some(left) = left().filter(|left| !left.is_zero()) {
            let set = self.stream.get_ref().set_read_timeout(Some(left));
            // Whatever else it says; an error is its end, too.
            if set.is_err() || !matches!(self.line(), Ok(Some(_))) {
                break;
            }
        }
        while left().is_some() && UnixStream::connect(self.path).is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Events may be as far apart as they like.
    pub(super) fn wait_for_ever(&self) -> Result<(), Error> {
        let set = self.stream.get_ref().set_read_timeout(None);
        set.map_err(|error| self.failed(error))
    }

    fn value(&mut self) -> Result<Value, Error> {
        let line = self
            .line()?
            .ok_or_else(|| self.strange("it says nothing"))?;
        serde_json::from_str(&line)
            .map_err(|_| self.strange("what it says is no line of the protocol"))
    }

    /// The next line; `None` at the end.
    pub(super) fn line(&mut self) -> Result<Option<String>, Error> {
        let mut line = String::new();
        let read = (&mut self.stream).take(MAX_LINE).read_line(&mut line);
        let len = read.map_err(|error| self.failed(error))?;
        Ok((len > 0).then_some(line))
    }

    fn failed(&self, source: std::io::Error) -> Error {
        Error::Host {
            what: format!("{}: no answer", self.path.display()),
            source,
        }
    }

    fn strange(&self, what: &str) -> Error {
        self.failed(std::io::Error::other(what.to_owned()))
    }
}

/// Sends a line; descriptors go with its last byte.
fn send(stream: &mut UnixStream, line: &str, files: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    if files.is_empty() {
        return stream.write_all(line.as_bytes());
    }
    let (end, bytes) = line.as_bytes().split_last().unwrap_or((&b'\n', &[]));
    stream.write_all(bytes)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(files));
    let end = [*end];
    sendmsg(
        stream,
        &[IoSlice::new(&end)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
