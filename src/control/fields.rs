//! Fields of commands: what is wrong with one is said with its name, and with what it may be.

use devices::config::{one_of, whole_number, words_of};
use devices::{Change, Query};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::config::{in_plain_words, read_value};
#[cfg(feature = "snapshot")]
use crate::control::saving::{DiskCopy, SavedForm};

/// Names the field, and the part of it that is wrong.
fn named<'de, D, T>(name: &str, from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    read_value(Value::deserialize(from)?).map_err(|error| {
        let part = match error.path.to_string() {
            path if path.is_empty() || path.starts_with('[') => path,
            path => format!(".{path}"),
        };
        let said = in_plain_words(&error.message, "field");
        D::Error::custom(format!("{name}{part}: {said}"))
    })
}

pub(super) fn timeout<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Seconds(#[serde(deserialize_with = "seconds")] u32);

    fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
        whole_number(from, &(0..=u32::MAX), "0 to 4294967295 seconds")
    }

    let given: Option<Seconds> = named("timeout_s", from)?;
    Ok(given.map(|Seconds(seconds)| seconds))
}

pub(super) fn device<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    struct Id(String);

    impl<'de> Deserialize<'de> for Id {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            devices::config::with_text(from, "the id of a device, as a text").map(Self)
        }
    }

    named("device", from).map(|Id(id)| id)
}

#[cfg(feature = "snapshot")]
pub(super) fn disks<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    named("blk", from)
}

#[cfg(feature = "snapshot")]
pub(super) fn taps<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    named("net", from)
}

#[cfg(feature = "snapshot")]
pub(super) fn copies<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<DiskCopy>, D::Error> {
    named("copies", from)
}

#[cfg(feature = "snapshot")]
pub(super) fn form<'de, D: Deserializer<'de>>(from: D) -> Result<SavedForm, D::Error> {
    struct Word(SavedForm);

    impl<'de> Deserialize<'de> for Word {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            devices::config::word(from).map(Self)
        }
    }

    named("form", from).map(|Word(form)| form)
}

pub(super) fn query<'de, D: Deserializer<'de>>(from: D) -> Result<Query, D::Error> {
    struct Word(Query);

    impl<'de> Deserialize<'de> for Word {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            devices::config::word(from).map(Self)
        }
    }

    named("query", from).map(|Word(query)| query)
}

pub(super) fn change<'de, D: Deserializer<'de>>(from: D) -> Result<Change, D::Error> {
    named("change", from).map_err(|error: D::Error| {
        // Of a value that is no object with one field, serde cannot say which fields it might have.
        let text = error.to_string();
        match text.strip_prefix("change: it is ") {
            Some(rest) if rest.starts_with("string or map") || rest.starts_with("a table") => {
                let known = one_of(words_of::<Change>());
                D::Error::custom(format!("change: it is an object with one field: {known}"))
            }
            _ => error,
        }
    })
}
