//! The lines of the control socket: pure functions from bytes to requests, and from answers to bytes.
//!
//! A request is a JSON object on a line of its own: a command (`{"command":"pause"}`) or a subscription
//! (`{"subscribe":["state"]}`), with an `id` (a number or a text) if the client wants to find it in the answer. An
//! answer has the `id`, and `ok` or `error`.

use std::error::Error as _;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::config::{in_plain_words, read_json};
use crate::control::command::{Command, CommandError, Reply};
use crate::control::event::{Event, Happening};

/// The version of this protocol. It changes when something that was there is no longer.
pub const PROTOCOL: u32 = 1;
/// The longest line of a client, without its end, in bytes.
pub(crate) const MAX_LINE: usize = 64 << 10;

/// What a client wants.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Command(Command),
    /// Events of these kinds; of all kinds if none is named.
    Subscribe(Vec<String>),
}

/// A line of a client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) id: Option<Value>,
    pub(crate) wish: Result<Wish, String>,
}

/// Reads a line.
pub(crate) fn parse(line: &[u8]) -> Line {
    let wrong = |id, cause: String| Line {
        id,
        wish: Err(cause),
    };
    let mut object = match object(line) {
        Ok(object) => object,
        Err(cause) => return wrong(None, format!("this is no request: {cause}")),
    };
    let id = match object.remove("id") {
        Some(id @ (Value::Number(_) | Value::String(_))) => Some(id),
        None | Some(Value::Null) => None,
        Some(_) => return wrong(None, "the id is a number or a text".to_owned()),
    };
    let wish = match object.get("subscribe") {
        Some(kinds) if object.len() == 1 => subscription(kinds),
        Some(_) => Err("a subscription has no other field than \"id\"".to_owned()),
        None if object.contains_key("command") => command(object),
        None => Err("a request has a \"command\" or a \"subscribe\"".to_owned()),
    };
    Line { id, wish }
}

/// A JSON object in which no key stands twice.
fn object(line: &[u8]) -> Result<Map<String, Value>, String> {
    match read_json(line).map_err(|error| in_json(&error))? {
        Value::Object(object) => Ok(object),
        Value::Array(_) => Err("it is a JSON object, not a list".to_owned()),
        other => Err(format!("it is a JSON object, not {other}")),
    }
}

fn command(object: Map<String, Value>) -> Result<Wish, String> {
    let name = object.get("command").and_then(Value::as_str);
    let Some(name) = Command::NAMES.iter().find(|known| name == Some(known)) else {
        return Err(format!("command is one of {}", Command::NAMES.join(", ")));
    };
    serde_json::from_value(Value::Object(object))
        .map(Wish::Command)
        .map_err(|error| format!("{name}: {}", in_plain_words(&error.to_string(), "field")))
}

/// What is wrong with a line that is no object.
fn in_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    // The place, once more, at the end of it.
    let text = text
        .rsplit_once(" at line ")
        .map_or(&*text, |(text, _)| text);
    let said = in_plain_words(text, "field");
    match error.classify() {
        serde_json::error::Category::Data => said,
        _ => format!("column {}: {said}", error.column()),
    }
}

fn subscription(kinds: &Value) -> Result<Wish, String> {
    let wrong = || {
        format!(
            "subscribe is a list of kinds of events: {}",
            Happening::NAMES.join(", ")
        )
    };
    let Value::Array(kinds) = kinds else {
        return Err(wrong());
    };
    let known = |kind: &Value| {
        let kind = kind.as_str().filter(|kind| Happening::NAMES.contains(kind));
        kind.map(str::to_owned).ok_or_else(wrong)
    };
    let kinds: Vec<_> = kinds.iter().map(known).collect::<Result<_, _>>()?;
    Ok(Wish::Subscribe(kinds))
}

/// The first line that a client gets.
pub(crate) fn greeting() -> Vec<u8> {
    line(&json!({
        "vmm": "vmm-reference",
        "version": env!("CARGO_PKG_VERSION"),
        "protocol": PROTOCOL,
        "pid": std::process::id(),
    }))
}

/// The answer to a command.
pub(crate) fn answer(id: Option<&Value>, result: &Result<Reply, CommandError>) -> Vec<u8> {
    match result {
        Ok(reply) => with_id(id, "ok", json!(reply)),
        Err(error) => {
            let (kind, state) = match error {
                CommandError::State { state, .. } => ("state", Some(state)),
                CommandError::ShuttingDown(_)
                | CommandError::NotSaved(_)
                | CommandError::NoKernel(_)
                | CommandError::NoNewMachine(_)
                | CommandError::NoKeyboard(_) => ("state", None),
                #[cfg(feature = "snapshot")]
                CommandError::Saving(_) | CommandError::NotForked(_) => ("state", None),
                CommandError::Ended(_) => ("ended", None),
                CommandError::NoDevice { .. }
                | CommandError::Foreign { .. }
                | CommandError::Device { .. }
                | CommandError::Query { .. } => ("device", None),
                CommandError::Descriptors { .. } => ("request", None),
                CommandError::Host { .. } => ("host", None),
            };
            let mut message = error.to_string();
            if let Some(cause) = error.source() {
                message = format!("{message}: {cause}");
            }
            let mut body = json!({ "kind": kind, "message": message });
            if let (Some(state), Some(body)) = (state, body.as_object_mut()) {
                body.insert("state".to_owned(), json!(state));
            }
            with_id(id, "error", body)
        }
    }
}

/// The answer to a subscription.
pub(crate) fn subscribed(id: Option<&Value>) -> Vec<u8> {
    with_id(id, "ok", json!({ "subscribed": true }))
}

/// The answer to what is no request.
pub(crate) fn refusal(id: Option<&Value>, message: &str) -> Vec<u8> {
    with_id(
        id,
        "error",
        json!({ "kind": "request", "message": message }),
    )
}

/// An event.
pub(crate) fn event(event: &Event) -> Vec<u8> {
    line(event)
}

fn with_id(id: Option<&Value>, key: &str, value: Value) -> Vec<u8> {
    let mut object = Map::new();
    if let Some(id) = id {
        object.insert("id".to_owned(), id.clone());
    }
    object.insert(key.to_owned(), value);
    line(&object)
}

fn line(value: &impl Serialize) -> Vec<u8> {
    // Such values cannot fail to become JSON.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_every_form() {
        let line = parse(br#"{"id":7,"command":"pause"}"#);
        assert_eq!(line.id, Some(json!(7)));
        assert_eq!(line.wish, Ok(Wish::Command(Command::Pause {})));
        let line = parse(br#"{"subscribe":["state","ended"],"id":"a"}"#);
        assert_eq!(line.id, Some(json!("a")));
        let kinds = ["state", "ended"].map(str::to_owned).to_vec();
        assert_eq!(line.wish, Ok(Wish::Subscribe(kinds)));
        for (text, cause) in [
            ("", "no request"),
            ("[]", "object"),
            (
                r#"{"command":"pause","command":"stop"}"#,
                "the field `command` stands twice",
            ),
            (r#"{"id":{},"command":"pause"}"#, "id"),
            (r#"{"id":1}"#, "command"),
            (r#"{"command":"fly"}"#, "pause"),
            (
                r#"{"command":"pause","hard":true}"#,
                "pause: there is no field `hard`; there are none",
            ),
            (
                r#"{"command":"shutdown","timeout_s":-1}"#,
                "shutdown: timeout_s: it is 0 to 4294967295 seconds, not -1",
            ),
            (r#"{"subscribe":"all"}"#, "list"),
            (r#"{"subscribe":["weather"]}"#, "shutdown-asked"),
            (r#"{"subscribe":[],"command":"pause"}"#, "no other field"),
        ] {
            let error = parse(text.as_bytes()).wish.unwrap_err();
            assert!(error.contains(cause), "{text}: {error}");
        }
        // Depth is bounded.
        assert!(parse(&[b'['; MAX_LINE]).wish.is_err());
    }

    #[test]
    fn what_is_wrong_with_a_field_is_said_in_words_of_the_protocol() {
        for (fields, said) in [
            (r#""device":"d""#, "the field `change` is missing"),
            (r#""change":{"target":1}"#, "the field `device` is missing"),
            (
                r#""device":7,"change":{"target":1}"#,
                "device: it is the id of a device, as a text, not 7",
            ),
            (
                r#""device":"d","change":{"link":"sideways"}"#,
                "change.link: it is up or down, not \"sideways\"",
            ),
            (
                r#""device":"d","change":{"link":true}"#,
                "change.link: it is up or down, not true",
            ),
            (
                r#""device":"d","change":{"target":-1}"#,
                "change.target: it is a number of bytes, 1 or more, not -1",
            ),
            (
                r#""device":"d","change":{"target":"1M"}"#,
                "change.target: it is a number of bytes, 1 or more, not \"1M\"",
            ),
            (
                r#""device":"d","change":{"size":{"columns":70000,"rows":1}}"#,
                "change.size.columns: it is 1 to 65535, not 70000",
            ),
            (
                r#""device":"d","change":{"size":{"columns":80}}"#,
                "change.size: the field `rows` is missing",
            ),
            (
                r#""device":"d","change":{"limits":{"bw":0}}"#,
                "change.limits.bw: \"0\": it is 1 to 1024T",
            ),
            (
                r#""device":"d","change":{"limits":{"speed":1}}"#,
                "there is no field `speed`; there are bw, bw-burst, bw-refill, bw-once, iops, iops-burst, iops-refill, iops-once",
            ),
            (
                r#""device":"d","change":{"hinting":true}"#,
                "change.hinting: it is start, hold or stop, not true",
            ),
            (
                r#""device":"d","change":{"stats-interval":86401}"#,
                "change.stats-interval: it is 0 to 86400, not 86401",
            ),
            (
                r#""device":"d","change":{"colour":1}"#,
                "change: it is limits, adjust-limits, link, target, size, file, hinting or stats-interval, not \"colour\"",
            ),
            (
                r#""device":"d","change":{}"#,
                "change: it is an object with one field: limits, adjust-limits, link, target, size, file, hinting or stats-interval",
            ),
            (
                r#""device":"d","change":[1]"#,
                "change: it is an object with one field: limits, adjust-limits, link, target, size, file, hinting or stats-interval",
            ),
            (
                r#""device":"d","change":{"target":1},"now":1"#,
                "there is no field `now`; there are device, change",
            ),
        ] {
            let text = format!(r#"{{"command":"device",{fields}}}"#);
            let error = parse(text.as_bytes()).wish.unwrap_err();
            assert!(error.starts_with("device: "), "{error}");
            assert!(error.contains(said), "{text}: `{said}` not in: {error}");
            for word in [
                "unknown", "invalid", "variant", "expected", "u32", "map", "sequence",
            ] {
                assert!(!error.contains(word), "`{word}` in: {error}");
            }
        }
        for (fields, said) in [
            (r#""device":"d""#, "query: the field `query` is missing"),
            (
                r#""device":"d","query":3"#,
                "query: query: it is statistics or hinting, not 3",
            ),
            (
                r#""device":"d","query":"news""#,
                "query: query: it is statistics or hinting, not \"news\"",
            ),
            (
                r#""device":[],"query":"hinting""#,
                "query: device: it is the id of a device, as a text, not a list",
            ),
        ] {
            let text = format!(r#"{{"command":"query",{fields}}}"#);
            assert_eq!(parse(text.as_bytes()).wish.unwrap_err(), said);
        }
        let no_object = parse(b"[]").wish.unwrap_err();
        assert_eq!(
            no_object,
            "this is no request: it is a JSON object, not a list"
        );
        let cut = parse(br#"{"command":"#).wish.unwrap_err();
        assert!(
            cut.starts_with("this is no request: column 11: EOF"),
            "{cut}"
        );
    }

    #[test]
    #[cfg(feature = "snapshot")]
    fn disks_that_are_copied_are_named_with_their_files() {
        let said = |copies: &str| {
            let text = format!(r#"{{"command":"snapshot","memory":"m","copies":{copies}}}"#);
            match parse(text.as_bytes()).wish {
                Ok(Wish::Command(command)) => format!("{} files", command.descriptors()),
                Ok(other) => panic!("{other:?}"),
                Err(cause) => cause,
            }
        };
        for (copies, expected) in [
            ("[]", "2 files"),
            (
                r#"[{"device":"a","name":"/a"},{"device":"b","name":"/b"}]"#,
                "4 files",
            ),
            (
                r#"[{"device":"a"}]"#,
                "snapshot: copies[0]: the field `name` is missing",
            ),
            (
                r#"[{"device":"a","name":"/a","how":1}]"#,
                "snapshot: copies[0].how: there is no field `how`; there are device, name",
            ),
        ] {
            assert_eq!(said(copies), expected);
        }
        let cause = said(r#"{"device":"a"}"#);
        assert!(
            cause.starts_with("snapshot: copies: it is a list"),
            "{cause}"
        );
    }

    #[test]
    fn answers_are_one_line_each() {
        let error = Err(CommandError::Ended("pause"));
        let text = String::from_utf8(answer(Some(&json!("x\ny")), &error)).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["id"], "x\ny");
        assert_eq!(value["error"]["kind"], "ended");
    }
}
