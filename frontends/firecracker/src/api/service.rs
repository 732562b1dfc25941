//! The API on its socket: bytes to requests, requests to the machine, and what comes of them to bytes.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmm_reference::{ClientLimits, Input, Next, Service, Watched};

use super::{Action, Asked, route};
use crate::http::{Decoder, Method, Request, Response, Status, Step};
use crate::machine::{Machine, OnItsWay, Outcome};
use crate::metrics;
use crate::seccomp::Filters;
use crate::texts::Fault;

/// Clients at a time.
const CLIENTS: usize = 64;
/// What may come of requests before the first one was looked at, in bytes, beside the longest body.
const AHEAD: usize = 16 << 10;
/// Answers that wait for a client, in bytes.
const ANSWERS: usize = 64 << 10;
/// How long a request may take to come, and an answer to be fetched.
const DEADLINE: Duration = Duration::from_secs(5);

/// The machine behind the socket.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) machine: Machine,
    /// The longest body, in bytes.
    pub(crate) payload_limit: usize,
    /// A fork that is on its way, and where the client that has asked for it finds what came of it. Until that is known,
    /// no other request is carried out: the machine's thread waits for this one, which must not wait for it.
    fork: Option<(OnItsWay, Outbox)>,
    /// What its thread may call, if that is limited.
    filters: Option<Arc<Filters>>,
}

/// Where what came of a fork is put.
type Outbox = Arc<Mutex<Option<Result<Outcome, Fault>>>>;

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    decoder: Decoder,
    /// A fork that it waits for, whoever has asked for it.
    waits: Option<Arc<Watched>>,
    /// Where the answer to its last request is put, and whether the connection ends with that.
    later: Option<(Outbox, bool)>,
}

/// What is said to a request.
#[derive(Debug)]
enum Said {
    Now(Response),
    Later(Outbox),
}

impl Api {
    /// What answers for this machine.
    pub(crate) fn new(
        machine: Machine,
        payload_limit: usize,
        filters: Option<Arc<Filters>>,
    ) -> Self {
        Self {
            machine,
            payload_limit,
            fork: None,
            filters,
        }
    }
}

impl Service for Api {
    type Client = Client;

    fn limits(&self) -> ClientLimits {
        ClientLimits::new(CLIENTS, self.payload_limit.saturating_add(AHEAD), ANSWERS)
            .with_deadlines(DEADLINE, DEADLINE)
    }

    fn begin(&mut self) {
        if let Some(filters) = &self.filters {
            filters.begin_api();
        }
    }

    fn greet(&mut self, _output: &mut Vec<u8>) -> Client {
        Client {
            decoder: Decoder::new(self.payload_limit),
            waits: None,
            later: None,
        }
    }

    fn watched(client: &Client) -> Option<BorrowedFd<'_>> {
        client.waits.as_ref().map(|watched| watched.as_fd())
    }

    fn serve(&mut self, client: &mut Client, input: &mut Input, output: &mut Vec<u8>) -> Next {
        self.settle();
        client.waits = self
            .fork
            .as_ref()
            .map(|(fork, _)| Arc::clone(fork.watched()));
        if client.waits.is_some() {
            return Next::Pending;
        }
        if let Some((outbox, close)) = client.later.take() {
            let outcome = outbox.lock().unwrap_or_else(PoisonError::into_inner).take();
            // It is there, since no fork is on its way.
            let mut response = response(outcome.unwrap_or(Ok(Outcome::Done)));
            response.close |= close;
            return say(&response, output);
        }
        loop {
            let (step, used) = client.decoder.step(input.bytes());
            // Descriptors that come beside requests are closed.
            drop(input.take(used));
            match step {
                Step::Say(response) => output.extend(response.to_bytes()),
                Step::Request(request) => match self.answer(&request) {
                    Said::Now(mut response) => {
                        response.close |= request.close;
                        return say(&response, output);
                    }
                    Said::Later(outbox) => {
                        client.later = Some((outbox, request.close));
                        return Next::Again;
                    }
                },
                Step::Refused(response) => {
                    log::error!("{}", response.body.as_deref().unwrap_or_default());
                    output.extend(response.to_bytes());
                    return Next::Close;
                }
                Step::More if input.has_ended() => return Next::Close,
                Step::More if input.bytes().is_empty() && client.decoder.is_idle() => {
                    return Next::Idle;
                }
                Step::More => return Next::Wait,
            }
        }
    }

    fn late(&mut self, _client: &mut Client, output: &mut Vec<u8>) {
        let seconds = DEADLINE.as_secs();
        let cause = format!("Invalid request. It was not whole {seconds} s after its beginning.");
        output.extend(Response::refused(&cause).to_bytes());
    }
}

fn say(response: &Response, output: &mut Vec<u8>) -> Next {
    output.extend(response.to_bytes());
    match response.close {
        true => Next::Close,
        false => Next::Again,
    }
}

impl Api {
    /// Finds out whether it is known what came of a fork.
    fn settle(&mut self) {
        let Some((fork, outbox)) = &mut self.fork else {
            return;
        };
        if let Some(outcome) = fork.settled() {
            *outbox.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
            self.fork = None;
        }
    }

    fn answer(&mut self, request: &Request) -> Said {
        let begun = Instant::now();
        log::info!("The API server received a {}.", description(request));
        let said = match route(request) {
            Ok(asked) => self.carry_out(asked),
            Err(error) => Said::Now(refused(Status::BadRequest, &error)),
        };
        log::debug!(
            "Total previous API call duration: {} us.",
            begun.elapsed().as_micros()
        );
        said
    }

    fn carry_out(&mut self, asked: Asked) -> Said {
        let outcome = match asked.action {
            Action::Fork(params) => match self.machine.fork(&params) {
                Ok(fork) => {
                    let outbox = Outbox::default();
                    self.fork = Some((fork, Arc::clone(&outbox)));
                    return Said::Later(outbox);
                }
                Err(fault) => Err(fault),
            },
            action => self.machine.handle(action),
        };
        let mut response = response(outcome);
        if let Some(what) = asked.deprecated {
            log::warn!("{what}");
            metrics::count("deprecated_api", "deprecated_http_api_calls");
            response.deprecated = true;
        }
        Said::Now(response)
    }
}

/// What is said of what came of a request.
fn response(outcome: Result<Outcome, Fault>) -> Response {
    match outcome {
        Ok(Outcome::Done) => {
            log::info!("The request was executed successfully. Status code: 204 No Content.");
            Response::done()
        }
        Ok(Outcome::Json(body)) => {
            log::info!("The request was executed successfully. Status code: 200 OK.");
            Response::json(body)
        }
        Err(fault @ Fault::TooMuchMetadata) => refused(Status::TooLarge, &fault),
        Err(fault) => refused(Status::BadRequest, &fault),
    }
}

/// A request that is answered with why it was not carried out. Names in that are the client's, and make no line of the
/// log of their own.
fn refused(status: Status, cause: &dyn std::error::Error) -> Response {
    let message = cause.to_string();
    let line: String = message
        .chars()
        .flat_map(|letter| match letter.is_control() {
            true => letter.escape_default().collect::<Vec<_>>(),
            false => vec![letter],
        })
        .collect();
    let name = match status {
        Status::TooLarge => "413 Payload too large",
        _ => "400 Bad Request",
    };
    log::error!("Received Error. Status code: {name}. Message: {line}");
    Response {
        status,
        ..Response::fault(&message)
    }
}

/// A request as the log has it. Metadata of a guest may be secret, and a CPU template is long.
fn description(request: &Request) -> String {
    let method = match request.method {
        Method::Get => "Get",
        Method::Put => "Put",
        Method::Patch => "Patch",
        Method::Delete => "Delete",
    };
    let path = &request.path;
    let plain = format!("{method} request on {path:?}");
    match &request.body {
        None => plain,
        Some(_) if path.trim_start_matches('/').starts_with("mmds") => plain,
        Some(_) if path == "/cpu-config" && !log::log_enabled!(log::Level::Debug) => format!(
            "{plain}. To view the CPU template received by the API, configure log-level to DEBUG"
        ),
        Some(body) => {
            let body = std::str::from_utf8(body).unwrap_or("inconvertible to UTF-8");
            format!("{plain} with body {body:?}")
        }
    }
}
