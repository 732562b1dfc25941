//! What the service answers: HTTP requests of a guest's, which read the data or ask for a token. The statuses, headers
//! and texts are those that clients in guests know.

use super::config::Version;
use super::connection::{INPUT, Served};
use super::store::{Format, Mmds, ReadError};
use super::tokens::TTL_SECONDS;
use crate::metrics;
use crate::texts::mmds::{
    INVALID_REQUEST, INVALID_TOKEN, INVALID_URI, NO_TOKEN, NO_TTL, NOT_ALLOWED, WRONG_TYPE,
    bad_header_value, forwarded, not_found, wrong_ttl,
};

/// Headers of a request.
const MAX_HEADERS: usize = 32;
/// Where tokens are.
const TOKEN_PATH: &str = "/latest/api/token";
const TOKEN: [&str; 2] = ["x-metadata-token", "x-aws-ec2-metadata-token"];
const TTL: [&str; 2] = [
    "x-metadata-token-ttl-seconds",
    "x-aws-ec2-metadata-token-ttl-seconds",
];
const FORWARDED: [&str; 1] = ["x-forwarded-for"];

/// An answer, but for what every answer has.
#[derive(Debug)]
struct Response {
    status: u16,
    json: bool,
    /// A header of its own.
    header: Option<(String, String)>,
    body: String,
}

impl Response {
    fn new(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            json: false,
            header: None,
            body: body.into(),
        }
    }

    fn to_bytes(&self, version: u8, close: bool) -> Vec<u8> {
        let own = match &self.header {
            Some((name, value)) => format!("{name}: {value}\r\n"),
            None => String::new(),
        };
        let kind = if self.json {
            "application/json"
        } else {
            "text/plain"
        };
        let connection = if close { "close" } else { "keep-alive" };
        format!(
            "HTTP/1.{version} {} \r\nServer: Firecracker API\r\nConnection: {connection}\r\n{own}\
             Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{}",
            self.status,
            self.body.len(),
            self.body
        )
        .into_bytes()
    }
}

/// Looks whether bytes of a client begin with a request, and answers it.
pub(super) fn serve(mmds: &mut Mmds, input: &[u8]) -> Served {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(input) {
        Ok(httparse::Status::Complete(used)) => {
            let version = request.version.unwrap_or(1);
            let close = ends(&request, version);
            let (response, close) = match has_body(&request) {
                // The service takes no bodies, and what comes behind would be taken for a request.
                true => (Response::new(400, INVALID_REQUEST), true),
                false => (answer(mmds, &request), close),
            };
            Served::Answer {
                used,
                answer: response.to_bytes(version, close),
                close,
            }
        }
        Ok(httparse::Status::Partial) if input.len() < INPUT => Served::Nothing,
        _ => Served::Answer {
            used: input.len(),
            answer: Response::new(400, INVALID_REQUEST).to_bytes(1, true),
            close: true,
        },
    }
}

/// The first header of one of these names, and what it says.
fn header<'a>(request: &httparse::Request<'a, '_>, names: &[&str]) -> Option<(&'a str, &'a str)> {
    let is_it = |header: &&httparse::Header<'a>| {
        names
            .iter()
            .any(|name| header.name.eq_ignore_ascii_case(name))
    };
    let found = request.headers.iter().find(is_it)?;
    // What is no text says nothing that anybody could have meant.
    let value = std::str::from_utf8(found.value).unwrap_or_default();
    Some((found.name, value.trim()))
}

fn has_body(request: &httparse::Request<'_, '_>) -> bool {
    let length = header(request, &["content-length"]);
    length.is_some_and(|(_, length)| length != "0")
        || header(request, &["transfer-encoding"]).is_some_and(|(_, coding)| coding != "identity")
}

/// Whether the client wants the connection to end with the answer (RFC 9112, 9.3).
fn ends(request: &httparse::Request<'_, '_>, version: u8) -> bool {
    match header(request, &["connection"]) {
        Some((_, word)) if word.eq_ignore_ascii_case("close") => true,
        Some((_, word)) if word.eq_ignore_ascii_case("keep-alive") => false,
        _ => version == 0,
    }
}

fn answer(mmds: &mut Mmds, request: &httparse::Request<'_, '_>) -> Response {
    let Some(path) = request.path.and_then(path) else {
        return Response::new(400, INVALID_URI);
    };
    match request.method {
        Some("GET") => get(mmds, request, path),
        Some("PUT") => put(mmds, request, path),
        _ => Response {
            header: Some(("Allow".to_owned(), "GET, PUT".to_owned())),
            ..Response::new(405, NOT_ALLOWED)
        },
    }
}

/// The path of a request's target, which may have a scheme and a host.
fn path(target: &str) -> Option<&str> {
    match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').and_then(|place| rest.get(place..)),
        None => target.starts_with('/').then_some(target),
    }
}

/// As one writes it once.
fn plain(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    for letter in path.chars() {
        if letter != '/' || !plain.ends_with('/') {
            plain.push(letter);
        }
    }
    plain
}

fn get(mmds: &mut Mmds, request: &httparse::Request<'_, '_>, path: &str) -> Response {
    let token = header(request, &TOKEN);
    let refusal = match token {
        Some((_, token)) if mmds.tokens.holds(token) => None,
        Some(_) => Some(("rx_invalid_token", INVALID_TOKEN)),
        None => Some(("rx_no_token", NO_TOKEN)),
    };
    if let Some((key, text)) = refusal {
        metrics::count("mmds", key);
        if mmds.version() == Version::V2 {
            return Response::new(401, text);
        }
    }
    let format = match header(request, &["accept"]) {
        Some((_, "application/json")) => Format::Json,
        _ => Format::Imds,
    };
    match mmds.read(&plain(path), format) {
        Ok(body) => Response {
            json: format == Format::Json,
            ..Response::new(200, body)
        },
        Err(ReadError::NotFound) => Response::new(404, not_found(path)),
        Err(ReadError::Type) => Response::new(501, WRONG_TYPE),
    }
}

/// A token is asked for.
fn put(mmds: &mut Mmds, request: &httparse::Request<'_, '_>, target: &str) -> Response {
    // A proxy that is open to the world would hand tokens out.
    if let Some((name, _)) = header(request, &FORWARDED) {
        return Response::new(400, forwarded(name));
    }
    if plain(target) != TOKEN_PATH {
        return Response::new(404, not_found(target));
    }
    let Some((name, value)) = header(request, &TTL) else {
        return Response::new(400, NO_TTL);
    };
    let Ok(seconds) = value.parse::<u32>() else {
        return Response::new(400, bad_header_value(name, value));
    };
    match mmds.tokens.issue(seconds) {
        Some(token) => Response {
            header: Some((name.to_owned(), seconds.to_string())),
            ..Response::new(200, token)
        },
        None => Response::new(400, wrong_ttl(seconds, &TTL_SECONDS)),
    }
}
