//! The data of the service: a JSON value that the API sets and changes, and how a guest may read it.

use std::io;

use serde_json::{Map, Value};

use super::config::{MmdsConfig, Version};
use super::tokens::Tokens;

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    /// That of EC2's service: names, one a line, or a text.
    Imds,
}

/// Why there is nothing to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadError {
    NotFound,
    /// It is neither an object nor a text.
    Type,
}

/// Why data was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteError {
    /// It is longer than the limit.
    TooLarge,
    /// There is nothing to change.
    Nothing,
}

/// The metadata of a machine.
#[derive(Debug)]
pub struct Mmds {
    /// None while nobody has set it.
    data: Option<Value>,
    /// The longest data, as JSON, in bytes.
    limit: usize,
    pub(crate) config: Option<MmdsConfig>,
    pub(super) tokens: Tokens,
}

impl Mmds {
    /// None yet, and at most so many bytes of JSON.
    ///
    /// # Errors
    /// When the host has no random bytes.
    pub fn new(limit: usize) -> io::Result<Self> {
        Ok(Self {
            data: None,
            limit,
            config: None,
            tokens: Tokens::new()?,
        })
    }

    /// Says how guests ask.
    pub fn configure(&mut self, config: MmdsConfig) {
        self.config = Some(config);
    }

    pub(super) fn version(&self) -> Version {
        let config = self.config.as_ref();
        config.map(|config| config.version).unwrap_or_default()
    }

    /// All of it, in JSON.
    pub(crate) fn all(&self) -> String {
        match &self.data {
            None | Some(Value::Null) => "{}".to_owned(),
            Some(data) => data.to_string(),
        }
    }

    /// Puts other data in its place. Says whether it fits.
    ///
    /// # Errors
    /// When it is too large.
    pub fn put(&mut self, data: Value) -> Result<(), WriteError> {
        if data.to_string().len() > self.limit {
            return Err(WriteError::TooLarge);
        }
        self.data = Some(data);
        Ok(())
    }

    /// Changes a part of it (RFC 7396).
    ///
    /// # Errors
    /// When there is no data, or it is too large then.
    pub fn patch(&mut self, patch: Value) -> Result<(), WriteError> {
        let mut data = self.data.clone().ok_or(WriteError::Nothing)?;
        merge(&mut data, patch);
        self.put(data)
    }

    /// What a guest reads at a path, which begins with a slash.
    pub(super) fn read(&self, path: &str, format: Format) -> Result<String, ReadError> {
        let pointer = path.strip_suffix('/').unwrap_or(path);
        let data = self.data.as_ref().unwrap_or(&Value::Null);
        let found = data.pointer(pointer).ok_or(ReadError::NotFound)?;
        let compatible = self
            .config
            .as_ref()
            .is_some_and(|config| config.imds_compat);
        match format {
            Format::Json if !compatible => Ok(found.to_string()),
            _ => imds(found).ok_or(ReadError::Type),
        }
    }
}

/// RFC 7396, 2. As deep as JSON that is read may be.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(&name);
        } else {
            merge(target.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// The names of an object, those of objects with a slash; or a text.
fn imds(value: &Value) -> Option<String> {
    let Value::Object(object) = value else {
        return value.as_str().map(str::to_owned);
    };
    let lines = object.iter().map(|(name, value)| {
        let end = if value.is_object() { "/" } else { "" };
        format!("{name}{end}")
    });
    Some(lines.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The examples of RFC 7396, appendix A.
    #[test]
    fn patches_are_merged_as_their_rfc_has_it() {
        for (target, patch, result) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (
                json!({"a":"b","b":"c"}),
                json!({"a":null}),
                json!({"b":"c"}),
            ),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (
                json!({"a":{"b":"c"}}),
                json!({"a":{"b":"d","c":null}}),
                json!({"a":{"b":"d"}}),
            ),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (
                json!({}),
                json!({"a":{"bb":{"ccc":null}}}),
                json!({"a":{"bb":{}}}),
            ),
        ] {
            let mut merged = target.clone();
            merge(&mut merged, patch.clone());
            assert_eq!(merged, result, "{target} {patch}");
        }
    }

    #[test]
    fn data_has_its_limit_and_stays_as_it_was_beyond() {
        let mut mmds = Mmds::new(20).unwrap();
        assert_eq!(mmds.all(), "{}");
        assert_eq!(mmds.patch(json!({"a": 1})), Err(WriteError::Nothing));
        mmds.put(json!({"a": "x".repeat(11)})).unwrap();
        mmds.patch(json!({"a": "x".repeat(12)})).unwrap();
        let too_large = Err(WriteError::TooLarge);
        assert_eq!(mmds.patch(json!({"b": 1})), too_large);
        assert_eq!(mmds.put(json!("x".repeat(19))), too_large);
        assert_eq!(mmds.all(), format!(r#"{{"a":"{}"}}"#, "x".repeat(12)));
        mmds.put(json!(null)).unwrap();
        assert_eq!(mmds.all(), "{}");
    }

    #[test]
    fn what_guests_read_has_two_forms() {
        let mut mmds = Mmds::new(1000).unwrap();
        assert_eq!(mmds.read("/", Format::Json), Ok("null".to_owned()));
        assert_eq!(mmds.read("/", Format::Imds), Err(ReadError::Type));
        let data =
            json!({"o": {"k": "v", "n": 1}, "t": "text", "l": ["x", 2], "e": {}, "a/b": "s"});
        mmds.put(data).unwrap();
        for (path, json, imds) in [
            ("/", None, Some("a/b\ne/\nl\no/\nt")),
            ("/o", Some(r#"{"k":"v","n":1}"#), Some("k\nn")),
            ("/o/", Some(r#"{"k":"v","n":1}"#), Some("k\nn")),
            ("/o/n", Some("1"), None),
            ("/t", Some("\"text\""), Some("text")),
            ("/l/0", Some("\"x\""), Some("x")),
            ("/l", Some("[\"x\",2]"), None),
            ("/e", Some("{}"), Some("")),
            ("/a~1b", Some("\"s\""), Some("s")),
        ] {
            if let Some(json) = json {
                assert_eq!(mmds.read(path, Format::Json), Ok(json.to_owned()), "{path}");
            }
            let imds = imds.map(str::to_owned).ok_or(ReadError::Type);
            assert_eq!(mmds.read(path, Format::Imds), imds, "{path}");
            mmds.configure(MmdsConfig {
                version: Version::V1,
                network_interfaces: Vec::new(),
                ipv4_address: None,
                imds_compat: true,
            });
            assert_eq!(mmds.read(path, Format::Json), imds, "{path}");
            mmds.config = None;
        }
        for path in ["/x", "/o/x", "/t/x", "/l/2", "x"] {
            assert_eq!(
                mmds.read(path, Format::Json),
                Err(ReadError::NotFound),
                "{path}"
            );
        }
    }
}
