//! Requests out of a stream of bytes.

use super::head::{self, Head, Length, MAX_HEAD};
use super::request::Request;
use super::response::Response;

/// The longest line with the size of a chunk, in bytes: 16 digits, and extensions that nobody sends.
const MAX_CHUNK_LINE: usize = 256;
/// What may come behind the last chunk, in bytes.
const MAX_TRAILER: usize = 1024;

/// What the bytes so far are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// More has to come.
    More,
    /// A client wants this word before it goes on.
    Say(Response),
    /// A request.
    Request(Request),
    /// No request. What comes behind it is nothing either.
    Refused(Response),
}

/// Makes requests of bytes.
#[derive(Debug)]
pub struct Decoder {
    /// The longest body, in bytes.
    limit: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Head,
    Body {
        head: Head,
        length: usize,
    },
    Chunks {
        head: Head,
        body: Vec<u8>,
        at: Chunk,
    },
}

/// Where a chunked body is (RFC 9112, 7.1).
#[derive(Debug, Clone, Copy)]
enum Chunk {
    Size,
    Data(usize),
    /// The end of a chunk's line of data.
    End,
    /// So many bytes of it so far.
    Trailer(usize),
}

/// A step, and how many bytes of the input are done with.
type Progress = Result<(Option<Step>, usize), String>;

impl Decoder {
    /// Takes bodies of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            state: State::Head,
        }
    }

    /// Whether nothing of a request has come.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Head)
    }

    /// Looks at bytes that have come; tells what they are, and how many are done with. The others have to be there the
    /// next time, too.
    pub fn step(&mut self, bytes: &[u8]) -> (Step, usize) {
        let mut done = 0;
        loop {
            let rest = bytes.get(done..).unwrap_or_default();
            match self.advance(rest) {
                Ok((Some(step), used)) => return (step, done + used),
                Ok((None, 0)) => return (Step::More, done),
                Ok((None, used)) => done += used,
                Err(cause) => return (Step::Refused(Response::refused(&cause)), bytes.len()),
            }
        }
    }

    /// Goes on by one part of a request: `None` and 0 bytes when it is not whole.
    fn advance(&mut self, bytes: &[u8]) -> Progress {
        match std::mem::replace(&mut self.state, State::Head) {
            State::Head => self.head(bytes),
            State::Body { head, length } => match bytes.get(..length) {
                Some(body) => Ok((Some(request(head, Some(body.to_owned()))), length)),
                None => {
                    self.state = State::Body { head, length };
                    Ok((None, 0))
                }
            },
            State::Chunks { head, body, at } => self.chunk(head, body, at, bytes),
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Progress {
        // Empty lines between requests are nothing (RFC 9112, 2.2).
        let empty = bytes
            .iter()
            .take_while(|byte| b"\r\n".contains(byte))
            .count();
        if empty > 0 {
            return Ok((None, empty));
        }
        let part = bytes.get(..MAX_HEAD).unwrap_or(bytes);
        let Some((head, used)) = head::parse(part)? else {
            if bytes.len() >= MAX_HEAD {
                return Err(format!(
                    "Invalid request. Its head has {MAX_HEAD} bytes at most."
                ));
            }
            return Ok((None, 0));
        };
        let expects = head.expects;
        self.state = match head.length {
            Length::Bytes(0) => return Ok((Some(request(head, None)), used)),
            Length::Bytes(length) => {
                let fits = usize::try_from(length).ok();
                let length = fits
                    .filter(|length| *length <= self.limit)
                    .ok_or_else(|| too_large(length, self.limit))?;
                State::Body { head, length }
            }
            Length::Chunked => State::Chunks {
                head,
                body: Vec::new(),
                at: Chunk::Size,
            },
        };
        Ok((expects.then(|| Step::Say(Response::to_continue())), used))
    }

    fn chunk(&mut self, head: Head, mut body: Vec<u8>, at: Chunk, bytes: &[u8]) -> Progress {
        let line = |most: usize| {
            let end = bytes.iter().take(most).position(|byte| *byte == b'\n');
            match end {
                Some(end) => Ok(Some((bytes.get(..end).unwrap_or_default(), end + 1))),
                None if bytes.len() >= most => Err("Invalid request. A chunk's line is too long."),
                None => Ok(None),
            }
        };
        let mut go_on = |head, body, at, used| {
            self.state = State::Chunks { head, body, at };
            Ok((None, used))
        };
        match at {
            Chunk::Size => {
                let Some((text, used)) = line(MAX_CHUNK_LINE)? else {
                    return go_on(head, body, at, 0);
                };
                let size = chunk_size(text).ok_or("Invalid request. A chunk has no size.")?;
                let whole = body
                    .len()
                    .checked_add(size)
                    .filter(|whole| *whole <= self.limit);
                if whole.is_none() {
                    return Err(too_large(size as u64, self.limit));
                }
                let at = if size == 0 {
                    Chunk::Trailer(0)
                } else {
                    Chunk::Data(size)
                };
                go_on(head, body, at, used)
            }
            Chunk::Data(left) => {
                let part = bytes.get(..left).unwrap_or(bytes);
                body.extend_from_slice(part);
                let at = match left - part.len() {
                    0 => Chunk::End,
                    left => Chunk::Data(left),
                };
                go_on(head, body, at, part.len())
            }
            Chunk::End => match bytes {
                [b'\r', b'\n', ..] => go_on(head, body, Chunk::Size, 2),
                [] | [b'\r'] => go_on(head, body, at, 0),
                _ => Err("Invalid request. A chunk is longer than its size.".to_owned()),
            },
            Chunk::Trailer(so_far) => {
                let Some((text, used)) = line(MAX_TRAILER.saturating_sub(so_far))? else {
                    return go_on(head, body, at, 0);
                };
                if text.trim_ascii().is_empty() {
                    let body = Some(body).filter(|body| !body.is_empty());
                    return Ok((Some(request(head, body)), used));
                }
                go_on(head, body, Chunk::Trailer(so_far + used), used)
            }
        }
    }
}

fn too_large(size: u64, limit: usize) -> String {
    format!(
        "Request payload with size {size} is larger than the limit of {limit} allowed by server."
    )
}

/// The size in a chunk's first line.
fn chunk_size(line: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(line).ok()?;
    let digits = text.split(';').next()?.trim_ascii();
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    usize::from_str_radix(digits, 16).ok().filter(|_| is_number)
}

fn request(head: Head, body: Option<Vec<u8>>) -> Step {
    Step::Request(Request {
        method: head.method,
        path: head.path,
        body,
        close: head.close,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::request::Method;
    use super::*;

    const LIMIT: usize = 1000;

    /// What comes of bytes that arrive in these parts; ends with a refusal.
    fn decode(bytes: &[u8], parts: &[usize]) -> Vec<Step> {
        let mut decoder = Decoder::new(LIMIT);
        let (mut buffer, mut steps) = (Vec::new(), Vec::new());
        let mut rest = bytes;
        let mut parts = parts.iter().copied();
        while !rest.is_empty() {
            let len = parts.next().unwrap_or(rest.len()).clamp(1, rest.len());
            let (part, behind) = rest.split_at(len);
            buffer.extend_from_slice(part);
            rest = behind;
            loop {
                let (step, used) = decoder.step(&buffer);
                buffer.drain(..used);
                match step {
                    Step::More => break,
                    Step::Refused(_) => {
                        steps.push(step);
                        return steps;
                    }
                    step => steps.push(step),
                }
            }
        }
        steps
    }

    fn put(path: &str, body: &str) -> Step {
        Step::Request(Request {
            method: Method::Put,
            path: path.to_owned(),
            body: Some(body.as_bytes().to_owned()),
            close: false,
        })
    }

    fn refusal(bytes: &str) -> String {
        match decode(bytes.as_bytes(), &[]).pop() {
            Some(Step::Refused(response)) => response.body.unwrap(),
            other => panic!("{bytes}: {other:?}"),
        }
    }

    const PIPELINE: &str = "PUT /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc\r\n\
         GET / HTTP/1.1\r\nHost: x\r\n\r\n\
         PUT /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1;x=y\r\nf\r\n0\r\nT: u\r\n\r\n\
         PUT /c HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\ng";

    #[test]
    fn requests_come_in_order_however_they_are_cut() {
        let get = Step::Request(Request {
            method: Method::Get,
            path: "/".to_owned(),
            body: None,
            close: false,
        });
        let whole = [
            put("/a", "abc"),
            get,
            put("/b", "def"),
            Step::Say(Response::to_continue()),
            put("/c", "g"),
        ];
        assert_eq!(decode(PIPELINE.as_bytes(), &[]), whole);
        assert_eq!(decode(PIPELINE.as_bytes(), &[1; 1000]), whole);
    }

    #[test]
    fn r49_a_body_has_its_limit_however_it_is_sent() {
        let text =
            "Request payload with size 1001 is larger than the limit of 1000 allowed by server.";
        let long = "PUT / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n";
        assert!(refusal(long).contains(text));
        let chunked = "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n";
        assert!(refusal(chunked).contains(text));
        let mut many = "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
        many.push_str(&"1\r\nx\r\n".repeat(1001));
        assert!(refusal(&many).contains("limit of 1000"));
        let fits = "PUT / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n".to_owned() + &"x".repeat(1000);
        assert_eq!(decode(fits.as_bytes(), &[]), [put("/", &"x".repeat(1000))]);
    }

    #[test]
    fn what_is_no_request_ends_the_connection() {
        let chunked = "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (behind, cause) in [
            ("x\r\n", "no size"),
            ("-1\r\n", "no size"),
            ("fffffffffffffffff\r\n", "no size"),
            ("ffffffffffffffff\r\n", "larger than the limit"),
            ("1\r\nxy", "longer than its size"),
            (&*"1".repeat(300), "too long"),
            (&("0\r\n".to_owned() + &"T: u\r\n".repeat(300)), "too long"),
        ] {
            let said = refusal(&format!("{chunked}{behind}"));
            assert!(said.contains(cause), "{behind}: {said}");
        }
        let said = refusal(&format!("GET /{}", "x".repeat(MAX_HEAD)));
        assert!(said.contains("8192 bytes at most"), "{said}");
        assert!(refusal("\u{0}\r\n\r\n").contains("Invalid request."));
    }

    proptest! {
        /// Whatever comes, no part of it is lost by where it is cut.
        #[test]
        fn bytes_mean_the_same_however_they_are_cut(
            mut bytes in prop::collection::vec(any::<u8>(), 0..40),
            at in 0..PIPELINE.len(),
            parts in prop::collection::vec(1usize..40, 0..60),
        ) {
            let mut all = PIPELINE.as_bytes().to_vec();
            all.truncate(at);
            all.append(&mut bytes);
            all.extend_from_slice(&PIPELINE.as_bytes()[at..]);
            let (cut, whole) = (decode(&all, &parts), decode(&all, &[]));
            // A refusal may come before all of what is wrong is there, with another cause.
            let requests = |steps: &[Step]| -> Vec<Step> {
                let refused = |step: &&Step| !matches!(step, Step::Refused(_));
                steps.iter().filter(refused).cloned().collect()
            };
            prop_assert_eq!(requests(&cut), requests(&whole));
            prop_assert_eq!(cut.len(), whole.len());
        }
    }
}
