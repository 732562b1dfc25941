//! Answers, byte by byte.

use serde_json::json;

/// The status codes of this API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The body of a request may come.
    Continue,
    /// Here is what was asked for.
    Ok,
    /// It was done.
    NoContent,
    /// It was not done.
    BadRequest,
    /// There is no room for what was to be kept.
    TooLarge,
}

impl Status {
    fn code(self) -> u16 {
        match self {
            Self::Continue => 100,
            Self::Ok => 200,
            Self::NoContent => 204,
            Self::BadRequest => 400,
            Self::TooLarge => 413,
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// How it went.
    pub status: Status,
    /// JSON.
    pub body: Option<String>,
    /// The request has something that is deprecated.
    pub deprecated: bool,
    /// No further request is answered on this connection.
    pub close: bool,
}

impl Response {
    fn new(status: Status, body: Option<String>) -> Self {
        Self {
            status,
            body,
            deprecated: false,
            close: false,
        }
    }

    /// The rest of the request may come.
    #[must_use]
    pub fn to_continue() -> Self {
        Self::new(Status::Continue, None)
    }

    /// It was done.
    #[must_use]
    pub fn done() -> Self {
        Self::new(Status::NoContent, None)
    }

    /// What was asked for, in JSON.
    #[must_use]
    pub fn json(body: String) -> Self {
        Self::new(Status::Ok, Some(body))
    }

    /// Why it was not done.
    #[must_use]
    pub fn fault(message: &str) -> Self {
        let body = json!({ "fault_message": message }).to_string();
        Self::new(Status::BadRequest, Some(body))
    }

    /// What is no request, after which nothing is read any more. Clients of old look for `error`.
    #[must_use]
    pub fn refused(cause: &str) -> Self {
        let error = format!("{cause}\nAll previous unanswered requests will be dropped.");
        let body = json!({ "fault_message": cause, "error": error }).to_string();
        Self {
            close: true,
            ..Self::new(Status::BadRequest, Some(body))
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let connection = if self.close { "close" } else { "keep-alive" };
        let mut text = format!(
            "HTTP/1.1 {} \r\nServer: Firecracker API\r\nConnection: {connection}\r\n",
            self.status.code()
        );
        if self.deprecated {
            text.push_str("Deprecation: true\r\n");
        }
        if let Some(body) = &self.body {
            let len = body.len();
            text.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {len}\r\n"
            ));
        }
        text.push_str("\r\n");
        text.push_str(self.body.as_deref().unwrap_or_default());
        text.into_bytes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_the_bytes_that_clients_know() {
        let start = "Server: Firecracker API\r\nConnection: keep-alive\r\n";
        for (response, bytes) in [
            (Response::done(), format!("HTTP/1.1 204 \r\n{start}\r\n")),
            (
                Response::to_continue(),
                format!("HTTP/1.1 100 \r\n{start}\r\n"),
            ),
            (
                Response::json(r#"{"firecracker_version":"1.16.0"}"#.to_owned()),
                format!(
                    "HTTP/1.1 200 \r\n{start}Content-Type: application/json\r\nContent-Length: 32\r\n\r\n\
                     {{\"firecracker_version\":\"1.16.0\"}}"
                ),
            ),
            (
                Response {
                    deprecated: true,
                    ..Response::done()
                },
                format!("HTTP/1.1 204 \r\n{start}Deprecation: true\r\n\r\n"),
            ),
            (
                Response::fault("a \"b\""),
                format!(
                    "HTTP/1.1 400 \r\n{start}Content-Type: application/json\r\nContent-Length: 27\r\n\r\n\
                     {{\"fault_message\":\"a \\\"b\\\"\"}}"
                ),
            ),
        ] {
            assert_eq!(String::from_utf8(response.to_bytes()).unwrap(), bytes);
        }
    }

    #[test]
    fn r49_a_refusal_is_json_and_says_that_the_connection_ends() {
        let text = String::from_utf8(Response::refused("no").to_bytes()).unwrap();
        assert!(text.contains("\r\nConnection: close\r\n"), "{text}");
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["fault_message"], "no");
        assert_eq!(
            body["error"],
            "no\nAll previous unanswered requests will be dropped."
        );
    }
}
