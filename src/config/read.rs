//! What a file or a socket says, read in two steps: the text into plain values, in which no key stands twice, and the
//! values into types. Each type is then read from one kind of source only, whatever the text's format was.

use std::fmt;

use serde::de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};
use serde_path_to_error::Segment;

/// How toml hands a date over, to whoever takes a table.
const TOML_DATE: &str = "$__toml_private_datetime";

/// A value in which no key stands twice, whatever it is read from.
struct UniqueKeys(Value);

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = UniqueKeys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<UniqueKeys, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("it is no finite number"))?;
        Ok(UniqueKeys(number.into()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys(value.into()))
    }

    fn visit_unit<E: Error>(self) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<UniqueKeys, A::Error> {
        let mut items = Vec::new();
        while let Some(UniqueKeys(item)) = list.next_element()? {
            items.push(item);
        }
        Ok(UniqueKeys(items.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<UniqueKeys, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if key == TOML_DATE {
                let cause = "it is a date or a time, which nothing here is";
                return Err(A::Error::custom(cause));
            }
            match map.entry(key) {
                Entry::Vacant(entry) => {
                    let UniqueKeys(value) = entries.next_value()?;
                    entry.insert(value);
                }
                Entry::Occupied(entry) => {
                    let key = entry.key();
                    return Err(A::Error::custom(format!("duplicate field `{key}`")));
                }
            }
        }
        Ok(UniqueKeys(map.into()))
    }
}

/// A part of the way to a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A table's key.
    Key(String),
    /// The place in a list, from 0 on.
    Item(usize),
}

/// The steps to a value, from the outermost on; as text, `blk[1].path`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ValuePath(pub Vec<Step>);

impl fmt::Display for ValuePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if place == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Item(item) => write!(f, "[{item}]")?,
            }
        }
        Ok(())
    }
}

impl ValuePath {
    /// As far as it is known.
    fn of(path: &serde_path_to_error::Path) -> Self {
        let step = |segment: &Segment| match segment {
            // What a date is made of is no key.
            Segment::Map { key } if key == TOML_DATE => None,
            Segment::Map { key } | Segment::Enum { variant: key } => Some(Step::Key(key.clone())),
            Segment::Seq { index } => Some(Step::Item(*index)),
            Segment::Unknown => None,
        };
        Self(path.iter().map_while(step).collect())
    }
}

/// Reads any value in which no key stands twice.
///
/// ```
/// use vmm_reference::read_unique;
///
/// let mut json = serde_json::Deserializer::from_str(r#"{"blk": [{"ro": true, "ro": false}]}"#);
/// let (path, error) = read_unique(&mut json).unwrap_err();
/// assert_eq!(path.to_string(), "blk[0]");
/// assert!(error.to_string().starts_with("duplicate field `ro`"));
/// ```
///
/// # Errors
/// The parser's, and where the value is that it is about.
pub fn read_unique<'de, D: Deserializer<'de>>(from: D) -> Result<Value, (ValuePath, D::Error)> {
    let read: Result<UniqueKeys, _> = serde_path_to_error::deserialize(from);
    match read {
        Ok(UniqueKeys(value)) => Ok(value),
        Err(error) => Err((ValuePath::of(error.path()), error.into_inner())),
    }
}

/// Reads a text of JSON in which no key stands twice, and nothing behind it. Where a fault is, is not kept for it, which
/// would take as long again.
#[cfg(any(feature = "control", feature = "snapshot"))]
pub(crate) fn read_json(text: &[u8]) -> serde_json::Result<Value> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let UniqueKeys(value) = UniqueKeys::deserialize(&mut json)?;
    json.end()?;
    Ok(value)
}

/// What is wrong with a value, and where.
#[derive(Debug)]
#[non_exhaustive]
pub struct ReadError {
    /// Where the value is.
    pub path: ValuePath,
    /// What serde says of it; [`in_plain_words`](crate::in_plain_words) has it in words for people.
    pub message: String,
}

/// Reads a value as a type.
///
/// ```
/// use vmm_reference::{VmConfig, in_plain_words, read_value};
///
/// let error = read_value::<VmConfig>(serde_json::json!({"blk": [{"queues": 99}]})).unwrap_err();
/// assert_eq!(error.path.to_string(), "blk[0].queues");
/// assert_eq!(in_plain_words(&error.message, "key"), "it is 1 to 16, not 99");
/// ```
///
/// # Errors
/// Says what is wrong, and with which part.
pub fn read_value<T: DeserializeOwned>(value: Value) -> Result<T, ReadError> {
    serde_path_to_error::deserialize(value).map_err(|error| ReadError {
        path: ValuePath::of(error.path()),
        message: error.inner().to_string(),
    })
}
