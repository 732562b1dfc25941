//! The head of a request: its first line and its headers.

use super::request::Method;

/// The longest head, in bytes: all headers that clients send are shorter by far.
pub(super) const MAX_HEAD: usize = 8 << 10;
/// Headers of a request.
const MAX_HEADERS: usize = 64;

/// What the head of a request says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) length: Length,
    /// The client waits for a word before it sends the body.
    pub(super) expects: bool,
    pub(super) close: bool,
}

/// How the length of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    Bytes(u64),
    Chunked,
}

/// Reads the head at the beginning of some bytes, and tells its length; `None` while it is not whole.
///
/// # Errors
/// Says what is wrong, as clients are told it.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, String> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let whole = request.parse(bytes).map_err(|error| match error {
        httparse::Error::Version => "Invalid HTTP Version: Unsupported HTTP version.".to_owned(),
        httparse::Error::TooManyHeaders => {
            format!("Invalid header. Reason: a request has {MAX_HEADERS} headers at most.")
        }
        httparse::Error::HeaderName | httparse::Error::HeaderValue => {
            format!("Invalid header. Reason: {error}.")
        }
        _ => "Invalid request.".to_owned(),
    })?;
    let httparse::Status::Complete(len) = whole else {
        return Ok(None);
    };
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Err("Invalid request.".to_owned());
    };
    let method = Method::parse(method)
        .ok_or_else(|| "Invalid HTTP Method: Unsupported HTTP method.".to_owned())?;
    let mut head = Head {
        method,
        path: path_of(target).ok_or_else(|| "Invalid URI: it names no path.".to_owned())?,
        length: Length::Bytes(0),
        expects: false,
        close: false,
    };
    let mut bytes_said = None;
    for header in request.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        let wrong = || {
            let name = header.name;
            format!("Invalid header. Reason: Invalid value. Key:{name}; Value:{value}")
        };
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            let number = value.parse::<u64>().ok().filter(|_| is_number);
            let number = number.ok_or_else(wrong)?;
            if bytes_said.is_some_and(|said| said != number) {
                return Err(wrong());
            }
            bytes_said = Some(number);
            if head.length != Length::Chunked {
                head.length = Length::Bytes(number);
            }
        } else if is("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") || head.length == Length::Chunked {
                return Err(wrong());
            }
            head.length = Length::Chunked;
        } else if is("expect") {
            head.expects |= value.eq_ignore_ascii_case("100-continue");
        } else if is("connection") {
            let mut options = value.split(',');
            head.close |= options.any(|option| option.trim().eq_ignore_ascii_case("close"));
        } else if is("accept-encoding") && !takes_identity(value) {
            return Err(wrong());
        }
    }
    // Whoever sees one of the two sees another request behind it than who sees the other.
    if head.length == Length::Chunked && bytes_said.is_some() {
        return Err(
            "Invalid header. Reason: Content-Length and Transfer-Encoding exclude each other."
                .to_owned(),
        );
    }
    Ok(Some((head, len)))
}

/// The path of a request's target: `/path` or `http://host/path`.
fn path_of(target: &str) -> Option<String> {
    let path = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => rest.get(rest.find('/')?..)?,
        _ => target,
    };
    path.starts_with('/').then(|| path.to_owned())
}

/// Whether a client takes answers as they are (RFC 9110, 12.5.3).
fn takes_identity(value: &str) -> bool {
    let mut any = true;
    for item in value.split(',') {
        let mut parts = item.split(';').map(str::trim);
        let coding = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q="));
        let refused = weight.and_then(|weight| weight.parse::<f32>().ok()) == Some(0.0);
        match coding {
            "identity" => return !refused,
            "*" => any = !refused,
            _ => {}
        }
    }
    any
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn head(headers: &str) -> Result<Head, String> {
        let text = format!("PUT /x HTTP/1.1\r\n{headers}\r\n");
        let (head, len) = parse(text.as_bytes())?.unwrap();
        assert_eq!(len, text.len());
        Ok(head)
    }

    #[test]
    fn heads_as_clients_send_them() {
        let text = b"GET http://localhost/machine-config HTTP/1.0\r\n\r\n";
        let (read, _) = parse(text).unwrap().unwrap();
        assert_eq!((read.method, &*read.path), (Method::Get, "/machine-config"));
        assert_eq!(head("Host:\r\n").unwrap().length, Length::Bytes(0));
        let read = head("content-LENGTH: 12\r\nExpect: 100-continue\r\n").unwrap();
        assert_eq!((read.length, read.expects), (Length::Bytes(12), true));
        assert!(head("Connection: Keep-Alive, Close\r\n").unwrap().close);
        let read = head("Transfer-Encoding: chunked\r\n").unwrap();
        assert_eq!(read.length, Length::Chunked);
        for fine in [
            "gzip",
            "identity",
            "*",
            "*;q=0, identity;q=0.5",
            "gzip;q=0",
            "",
        ] {
            assert!(
                head(&format!("Accept-Encoding: {fine}\r\n")).is_ok(),
                "{fine}"
            );
        }
        for part in 1..text.len() {
            assert_eq!(parse(&text[..part]), Ok(None));
        }
    }

    #[test]
    fn what_is_no_head_is_refused_in_the_words_that_clients_know() {
        for (headers, cause) in [
            (
                "Content-Length: alpha\r\n",
                "Key:Content-Length; Value:alpha",
            ),
            ("Content-Length: -1\r\n", "Value:-1"),
            ("Content-Length: +1\r\n", "Value:+1"),
            ("Content-Length: 99999999999999999999\r\n", "Invalid value"),
            ("Content-Length: 1\r\nContent-Length: 2\r\n", "Value:2"),
            (
                "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
                "exclude",
            ),
            (
                "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
                "exclude",
            ),
            ("Transfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding"),
            ("Accept-Encoding: identity;q=0\r\n", "identity;q=0"),
            ("Accept-Encoding: *;q=0\r\n", "*;q=0"),
            ("no colon\r\n", "Invalid header. Reason:"),
        ] {
            let error = head(headers).unwrap_err();
            assert!(error.contains(cause), "{headers}: {error}");
        }
        for (line, cause) in [
            ("POST / HTTP/1.1", "Invalid HTTP Method"),
            ("get / HTTP/1.1", "Invalid HTTP Method"),
            ("GET / HTTP/2.0", "Invalid HTTP Version"),
            ("GET x HTTP/1.1", "Invalid URI"),
            ("GET http://host HTTP/1.1", "Invalid URI"),
            ("GET /", "Invalid request."),
            ("\u{1}", "Invalid request."),
        ] {
            let error = parse(format!("{line}\r\n\r\n").as_bytes()).unwrap_err();
            assert!(error.contains(cause), "{line}: {error}");
        }
        let many = "A: b\r\n".repeat(MAX_HEADERS + 1);
        assert!(head(&many).unwrap_err().contains("64 headers at most"));
    }
}
