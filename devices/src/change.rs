//! What can be changed of a device while its machine runs: plain data, with or without the devices themselves.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::config::{
    Limits, LimitsChange, OptionError, check_stats_interval, size_with_unit, whole_number, word,
};

/// A change of a device that is there, whether a driver uses it or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Change {
    /// Of a disk, a network device or a source of random bytes: how much may pass. What is not named is not limited any more.
    Limits(#[serde(deserialize_with = "crate::config::limits_table")] Limits),
    /// Likewise, but what is not named stays as it is.
    AdjustLimits(LimitsChange),
    /// Of a network device: whether its cable is plugged in. While it is not, frames are dropped.
    Link(#[serde(deserialize_with = "word")] Link),
    /// Of a balloon: bytes of RAM that the guest is left with.
    Target(#[serde(deserialize_with = "bytes")] u64),
    /// Of a console: the size of its terminal.
    Size(TerminalSize),
    /// Of a disk: another file behind it, which comes open beside the change.
    File(NewFile),
    /// Of a balloon: whether the guest names its free pages, which go back to the host.
    Hinting(#[serde(deserialize_with = "word")] Hinting),
    /// Of a balloon: how often the guest is asked for its statistics, in seconds; 0: only when a command asks.
    StatsInterval(#[serde(deserialize_with = "crate::config::stats_interval")] u32),
}

/// A file that takes the place of a disk's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NewFile {
    /// What messages call it; nobody opens it by this name.
    pub name: String,
    /// It comes twice, as two descriptors that were opened each by itself: inside a sandbox a disk with direct I/O needs
    /// both. A disk without drops the second one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub twice: bool,
}

impl NewFile {
    /// The file that messages call so, and that comes once.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            twice: false,
        }
    }

    /// The same, if it was opened twice.
    #[must_use]
    pub fn opened_twice(mut self, twice: bool) -> Self {
        self.twice = twice;
        self
    }
}

/// The longest name of a file in bytes (PATH_MAX without its end).
const MAX_NAME: usize = 4095;

/// What is to become of free page hinting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Hinting {
    /// The guest names its free pages, and may use them again once it has named all.
    Start,
    /// Likewise, but it leaves them alone until it is told to stop.
    Hold,
    /// The guest names no more pages, and may use them again.
    Stop,
}

/// The state of a network device's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Link {
    /// Frames pass.
    Up,
    /// Frames are dropped.
    Down,
}

/// The size of a terminal, each side 1 at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Characters in a line.
    #[serde(deserialize_with = "side")]
    pub columns: u16,
    /// Lines.
    #[serde(deserialize_with = "side")]
    pub rows: u16,
}

/// Zero is refused by [`Change::check`], as in a program's change.
fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    whole_number(from, &(0..=u64::MAX), "a number of bytes, 1 or more")
}

/// Likewise.
fn side<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
    whole_number(from, &(0..=u16::MAX), "1 to 65535")
}

impl Change {
    /// What it is about, as commands call it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Limits(_) | Self::AdjustLimits(_) => "limits",
            Self::Link(_) => "link",
            Self::Target(_) => "target",
            Self::Size(_) => "size",
            Self::File(_) => "file",
            Self::Hinting(_) => "hinting",
            Self::StatsInterval(_) => "stats-interval",
        }
    }

    /// Checks every value, whatever the device.
    ///
    /// # Errors
    /// Names the value and what it may be.
    pub fn check(&self) -> Result<(), OptionError> {
        let wrong =
            |key, value: String, cause: &str| Err(OptionError::Value(key, value, cause.to_owned()));
        match self {
            Self::Limits(limits) => limits.check(),
            Self::AdjustLimits(change) => change.check(),
            Self::Target(0) => {
                let cause = "the guest would be left with no memory; give what it may keep";
                wrong("target", "0".to_owned(), cause)
            }
            Self::Size(TerminalSize { columns, rows }) if *columns == 0 || *rows == 0 => {
                let cause = "it is 1 to 65535 columns and rows";
                wrong("size", format!("{columns}x{rows}"), cause)
            }
            Self::File(NewFile { name, .. }) if name.is_empty() || name.len() > MAX_NAME => {
                let cause = format!("it has 1 to {MAX_NAME} bytes");
                wrong("name", name.chars().take(32).collect(), &cause)
            }
            Self::StatsInterval(seconds) => check_stats_interval(*seconds),
            Self::File(_) | Self::Target(_) | Self::Size(_) | Self::Link(_) | Self::Hinting(_) => {
                Ok(())
            }
        }
    }
}

/// As `vmm-reference ctl` takes it.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limits(limits) => write!(f, "limits {limits}"),
            Self::AdjustLimits(change) => write!(f, "adjust-limits {change}"),
            Self::Link(Link::Up) => f.write_str("link up"),
            Self::Link(Link::Down) => f.write_str("link down"),
            Self::Target(target) => write!(f, "target {}", size_with_unit(*target)),
            Self::Size(TerminalSize { columns, rows }) => write!(f, "size {columns}x{rows}"),
            Self::File(NewFile { name, .. }) => write!(f, "file {name}"),
            Self::Hinting(Hinting::Start) => f.write_str("hinting start"),
            Self::Hinting(Hinting::Hold) => f.write_str("hinting hold"),
            Self::Hinting(Hinting::Stop) => f.write_str("hinting stop"),
            Self::StatsInterval(seconds) => write!(f, "stats-interval {seconds}"),
        }
    }
}

/// Why a device was not changed, or tells nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// Devices of its kind have no such thing.
    #[error("such a device has none")]
    Foreign,
    /// The value is none.
    #[error(transparent)]
    Value(#[from] OptionError),
    /// It cannot be changed now.
    #[error("{0}")]
    Refused(String),
    /// The device is lost, by a fault of the VMM.
    #[error("the device is lost, by a fault of the VMM")]
    Lost,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values_that_no_device_takes_are_refused_by_name() {
        let limits = |bw, bw_burst| {
            Change::Limits(Limits {
                bw,
                bw_burst,
                ..Limits::default()
            })
        };
        let size = |columns, rows| Change::Size(TerminalSize { columns, rows });
        let file = |name: &str| Change::File(NewFile::new(name));
        for (change, word) in [
            (Change::Target(0), "no memory"),
            (limits(Some(0), None), "1 to 1024T"),
            (limits(None, Some(1)), "give bw"),
            (size(0, 25), "1 to 65535"),
            (size(80, 0), "1 to 65535"),
            (Change::StatsInterval(86_401), "0 to 86400"),
            (file(""), "1 to 4095 bytes"),
            (file(&"x".repeat(4096)), "1 to 4095 bytes"),
        ] {
            let error = change.check().unwrap_err().to_string();
            assert!(error.contains(word), "{change:?}: {error}");
        }
        for change in [
            limits(None, None),
            limits(Some(1), Some(1)),
            Change::Link(Link::Down),
            Change::Target(1),
            Change::Hinting(Hinting::Hold),
            Change::StatsInterval(0),
            file("/disk.img"),
            size(1, u16::MAX),
        ] {
            assert_eq!(change.check(), Ok(()), "{change:?}");
        }
    }
}
