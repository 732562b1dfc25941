//! The API on its socket: bytes to requests, requests to the machine, and what comes of them to bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_reference::{ClientLimits, Input, Next, Service};

use super::{Asked, route};
use crate::http::{Decoder, Method, Request, Response, Status, Step};
use crate::machine::{Machine, Outcome};
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
    /// What its thread may call, if that is limited.
    pub(crate) filters: Option<Arc<Filters>>,
}

impl Service for Api {
    type Client = Decoder;

    fn limits(&self) -> ClientLimits {
        ClientLimits::new(CLIENTS, self.payload_limit.saturating_add(AHEAD), ANSWERS)
            .with_deadlines(DEADLINE, DEADLINE)
    }

    fn begin(&mut self) {
        if let Some(filters) = &self.filters {
            filters.begin_api();
        }
    }

    fn greet(&mut self, _output: &mut Vec<u8>) -> Decoder {
        Decoder::new(self.payload_limit)
    }

    fn serve(&mut self, client: &mut Decoder, input: &mut Input, output: &mut Vec<u8>) -> Next {
        loop {
            let (step, used) = client.step(input.bytes());
            // Descriptors that come beside requests are closed.
            drop(input.take(used));
            match step {
                Step::Say(response) => output.extend(response.to_bytes()),
                Step::Request(request) => {
                    let mut response = self.answer(&request);
                    response.close |= request.close;
                    output.extend(response.to_bytes());
                    return if response.close {
                        Next::Close
                    } else {
                        Next::Again
                    };
                }
                Step::Refused(response) => {
                    log::error!("{}", response.body.as_deref().unwrap_or_default());
                    output.extend(response.to_bytes());
                    return Next::Close;
                }
                Step::More if input.has_ended() => return Next::Close,
                Step::More if input.bytes().is_empty() && client.is_idle() => return Next::Idle,
                Step::More => return Next::Wait,
            }
        }
    }

    fn late(&mut self, _client: &mut Decoder, output: &mut Vec<u8>) {
        let seconds = DEADLINE.as_secs();
        let cause = format!("Invalid request. It was not whole {seconds} s after its beginning.");
        output.extend(Response::refused(&cause).to_bytes());
    }
}

impl Api {
    fn answer(&mut self, request: &Request) -> Response {
        let begun = Instant::now();
        log::info!("The API server received a {}.", description(request));
        let response = match route(request) {
            Ok(asked) => self.carry_out(asked),
            Err(error) => refused(Status::BadRequest, &error),
        };
        log::debug!(
            "Total previous API call duration: {} us.",
            begun.elapsed().as_micros()
        );
        response
    }

    fn carry_out(&mut self, asked: Asked) -> Response {
        let mut response = match self.machine.handle(asked.action) {
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
        };
        if let Some(what) = asked.deprecated {
            log::warn!("{what}");
            metrics::count("deprecated_api", "deprecated_http_api_calls");
            response.deprecated = true;
        }
        response
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
