//! What is said on the control socket: lines to commands, and what comes of those.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use devices::socket::SocketFile;
use serde_json::Value;

use super::protocol::{self, Line, MAX_LINE, Wish};
use super::service::{ClientLimits, Input, Next, Service};
use crate::control::answer::{Answered, Asked};
use crate::control::event::Subscription;
use crate::control::handle::VmHandle;
use crate::wake::Wake;

/// Clients at a time.
const MAX_CLIENTS: usize = 16;
/// Answers that wait for a client, in bytes.
const MAX_WAITING: usize = 64 << 10;

/// The machine behind the socket.
pub(super) struct Dialogue {
    pub(super) handle: VmHandle,
    /// Set when the answer to a command has come.
    pub(super) wake: Arc<Wake>,
    /// The socket's file, until the thread ends.
    pub(super) _file: SocketFile,
}

/// A client of it.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// Its kinds of events, all if there are none.
    subscription: Option<(Subscription, Vec<String>)>,
    /// A request whose answer is still to come, with its id.
    asked: Option<(Option<Value>, Answered)>,
}

impl Service for Dialogue {
    type Client = Client;

    fn limits(&self) -> ClientLimits {
        ClientLimits::new(MAX_CLIENTS, MAX_LINE, MAX_WAITING)
    }

    fn greet(&mut self, output: &mut Vec<u8>) -> Client {
        output.extend(protocol::greeting());
        Client::default()
    }

    fn serve(&mut self, client: &mut Client, input: &mut Input, output: &mut Vec<u8>) -> Next {
        if let Some((id, asked)) = &client.asked {
            let Some(answer) = asked.take() else {
                return Next::Pending;
            };
            output.extend(protocol::answer(id.as_ref(), &answer));
            client.asked = None;
            return Next::Again;
        }
        let end = input.bytes().iter().position(|byte| *byte == b'\n');
        let at_end = input.has_ended();
        match end {
            Some(end) if end <= MAX_LINE => {
                let (line, files) = input.take(end + 1);
                let line = line.strip_suffix(b"\n").unwrap_or(&line);
                if line.trim_ascii().is_empty() {
                    return Next::Again;
                }
                self.answer(client, protocol::parse(line), files, output)
            }
            None if input.bytes().is_empty() && !at_end => Next::Idle,
            None if input.bytes().len() <= MAX_LINE && !at_end => Next::Wait,
            None if at_end && input.bytes().trim_ascii().is_empty() => {
                // Who has shut down its side may go on listening to events.
                match client.subscription {
                    Some(_) => Next::Idle,
                    None => Next::Close,
                }
            }
            // The last line lacks its end.
            None if at_end => {
                let (line, files) = input.take(input.bytes().len());
                self.answer(client, protocol::parse(&line), files, output)
            }
            _ => {
                let text = format!("a line has {MAX_LINE} bytes at most");
                output.extend(protocol::refusal(None, &text));
                Next::Close
            }
        }
    }

    fn watched(client: &Client) -> Option<BorrowedFd<'_>> {
        client
            .subscription
            .as_ref()
            .map(|(events, _)| events.as_fd())
    }

    fn tell(&mut self, client: &mut Client, output: &mut Vec<u8>) {
        while output.len() < MAX_WAITING
            && let Some((events, kinds)) = &client.subscription
            && let Some(event) = events.try_next()
        {
            let name = event.what.name();
            if kinds.is_empty() || name == "lost" || kinds.iter().any(|kind| kind == name) {
                output.extend(protocol::event(&event));
            }
        }
    }
}

impl Dialogue {
    fn answer(
        &self,
        client: &mut Client,
        line: Line,
        files: Vec<OwnedFd>,
        output: &mut Vec<u8>,
    ) -> Next {
        let id = line.id.as_ref();
        let answer = match line.wish {
            Ok(Wish::Command(command)) => {
                let wake = Some(Arc::clone(&self.wake));
                match self.handle.ask(command, files, wake) {
                    Ok(Asked::Later(answered)) => {
                        client.asked = Some((line.id, answered));
                        // It may be there already.
                        return Next::Again;
                    }
                    Ok(Asked::Now(reply)) => protocol::answer(id, &Ok(reply)),
                    Err(error) => protocol::answer(id, &Err(error)),
                }
            }
            Ok(Wish::Subscribe(kinds)) => match self.handle.subscribe() {
                Ok(events) => {
                    client.subscription = Some((events, kinds));
                    protocol::subscribed(id)
                }
                Err(error) => protocol::refusal(id, &error.to_string()),
            },
            Err(cause) => protocol::refusal(id, &cause),
        };
        output.extend(answer);
        Next::Again
    }
}
