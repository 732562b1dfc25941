//! Values of options: what is wrong with one is said with its option, and with what would be right.

use std::ffi::OsStr;
use std::fmt::Display;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Command};
use serde::de::value::{Error, StringDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer};
#[cfg(feature = "virtio")]
use vmm_reference::Transport;
use vmm_reference::words_of;

/// Takes a value from text.
#[derive(Debug, Clone)]
pub(super) struct Text<T>(fn(&str) -> Result<T, String>);

/// A value that has a text.
pub(super) fn text<T: FromStr<Err: Display>>() -> Text<T> {
    Text(|text| text.parse().map_err(|error: T::Err| error.to_string()))
}

/// One of the words of an enumeration.
pub(super) fn word<T>() -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    words(words_of::<T>().to_vec())
}

fn words<T>(known: Vec<&'static str>) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(known).try_map(|word| {
        let word: StringDeserializer<Error> = word.into_deserializer();
        T::deserialize(word)
    })
}

/// `on` or `off`.
pub(super) fn on_off() -> impl TypedValueParser<Value = bool> {
    PossibleValuesParser::new(["on", "off"]).map(|word| word == "on")
}

/// The transports of this build.
#[cfg(feature = "virtio")]
pub(super) fn transport() -> impl TypedValueParser<Value = Transport> {
    let built = |word: &&str| *word != "pci" || cfg!(feature = "pci");
    words(
        words_of::<Transport>()
            .iter()
            .copied()
            .filter(built)
            .collect(),
    )
}

/// A number of vCPUs; what the host offers is known later.
pub(super) fn vcpus() -> Text<u32> {
    Text(|text| number(text, 1, "1 to as many as this host offers"))
}

/// The number of a user or a group; the last one stands for none (chown(2)).
pub(super) fn id() -> Text<u32> {
    Text(|text| match number(text, 0, "a number") {
        Ok(u32::MAX) => Err("it stands for no user and no group".to_owned()),
        other => other,
    })
}

pub(super) fn seconds() -> Text<u32> {
    Text(|text| number(text, 0, "0 to 4294967295 seconds"))
}

/// A balloon's target in bytes, as `--balloon=target=` takes it.
#[cfg(feature = "control")]
pub(super) fn target() -> Text<u64> {
    Text(|text| balloon("target", text).map(|balloon| balloon.target.unwrap_or_default()))
}

/// Seconds, as `--balloon=stats-interval=` takes them.
#[cfg(feature = "control")]
pub(super) fn stats_interval() -> Text<u32> {
    Text(|text| balloon("stats-interval", text).map(|balloon| balloon.stats_interval))
}

/// A balloon of which one option is given.
#[cfg(feature = "control")]
fn balloon(key: &str, text: &str) -> Result<vmm_reference::BalloonConfig, String> {
    let option = format!("{key}=\"{}\"", text.replace('"', "\"\""));
    option.parse().map_err(|error| match error {
        vmm_reference::OptionError::Value(_, _, cause) => cause,
        error => error.to_string(),
    })
}

/// One of the limits of a device, or `none`; what they are together is known later.
#[cfg(feature = "control")]
pub(super) fn limit() -> Text<String> {
    Text(|text| match text.split_once('=') {
        // Without its rate, a burst is none.
        Some((key, _)) if key.starts_with("bw-") => check_limit(text, "bw=1"),
        Some((key, _)) if key.starts_with("iops-") => check_limit(text, "iops=1"),
        _ => check_limit(text, ""),
    })
}

#[cfg(feature = "control")]
fn check_limit(text: &str, rate: &str) -> Result<String, String> {
    let limits = format!("{text} {rate}").parse::<vmm_reference::Limits>();
    limits
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

#[cfg(feature = "control")]
pub(super) fn terminal_size() -> Text<vmm_reference::TerminalSize> {
    Text(|text| {
        let side = |text: &str| text.parse().ok().filter(|side| *side > 0);
        let size = text.split_once('x').and_then(|(columns, rows)| {
            Some(vmm_reference::TerminalSize {
                columns: side(columns)?,
                rows: side(rows)?,
            })
        });
        size.ok_or_else(|| "it is COLUMNSxROWS, 1 to 65535 each, like 80x25".to_owned())
    })
}

fn number(text: &str, least: u32, range: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| *number >= least);
    number.ok_or_else(|| format!("it is {range}"))
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Text<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &Command,
        argument: Option<&Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        let found = value
            .to_str()
            .ok_or_else(|| "it is not text in UTF-8".to_owned());
        found.and_then(self.0).map_err(|cause| {
            let option = argument.map(ToString::to_string).unwrap_or_default();
            let value = value.to_string_lossy();
            let message = format!("invalid value '{value}' for '{option}': {cause}\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}
