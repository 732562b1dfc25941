//! How much of something a device may do.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::text::{First, options};
use super::{OptionError, Size, parse_size};

/// Beyond that, a bucket's level would not fit; no device is as fast.
const RANGE: RangeInclusive<u64> = 1..=1 << 50;
const IN_WORDS: &str = "1 to 1024T";

/// How much of something a device may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes per second.
    #[serde(deserialize_with = "bytes")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "amount_schema"))]
    pub bw: Option<u64>,
    /// Bytes that may go at once after a pause; without it, those of a second.
    #[serde(deserialize_with = "bytes")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "amount_schema"))]
    pub bw_burst: Option<u64>,
    /// Requests (or packets) per second.
    #[serde(deserialize_with = "bytes")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "amount_schema"))]
    pub iops: Option<u64>,
    /// Requests that may go at once after a pause; without it, those of a second.
    #[serde(deserialize_with = "bytes")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "amount_schema"))]
    pub iops_burst: Option<u64>,
}

impl Limits {
    /// The options that its text may have.
    pub const OPTIONS: &'static [&'static str] = &["bw=", "bw-burst=", "iops=", "iops-burst="];
}

/// `bw=10M,iops=100`, with blanks instead of commas too; `none` for no limits.
impl FromStr for Limits {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut limits = Self::default();
        let words: Vec<_> = text.split_ascii_whitespace().collect();
        if words == ["none"] {
            return Ok(limits);
        }
        let mut text = String::new();
        for word in words {
            // The comma may be there already.
            if !(text.is_empty() || text.ends_with(',')) {
                text.push(',');
            }
            text.push_str(word);
        }
        let found = options(&text, First::Option, Self::OPTIONS)?;
        if found.is_empty() {
            return Err(OptionError::Missing(
                "limit",
                "none, or bw=, iops= and more",
            ));
        }
        for (key, text) in found {
            limits.take(key, &text)?;
        }
        limits.check()?;
        Ok(limits)
    }
}

/// As text that gives the same limits again.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut blank = "";
        for (key, amount) in [
            ("bw", self.bw),
            ("bw-burst", self.bw_burst),
            ("iops", self.iops),
            ("iops-burst", self.iops_burst),
        ] {
            if let Some(amount) = amount {
                write!(f, "{blank}{key}={amount}")?;
                blank = " ";
            }
        }
        if blank.is_empty() {
            f.write_str("none")?;
        }
        Ok(())
    }
}

impl Limits {
    /// Takes an option if it is one of these.
    pub(super) fn take(&mut self, key: &str, text: &str) -> Result<(), OptionError> {
        let amount = |key| {
            let wrong = |cause| OptionError::Value(key, text.to_owned(), cause);
            amount(text).map(Some).map_err(wrong)
        };
        match key {
            "bw" => self.bw = amount("bw")?,
            "bw-burst" => self.bw_burst = amount("bw-burst")?,
            "iops" => self.iops = amount("iops")?,
            "iops-burst" => self.iops_burst = amount("iops-burst")?,
            _ => {}
        }
        Ok(())
    }

    /// Checks what is true of every device's limits.
    pub(crate) fn check(&self) -> Result<(), OptionError> {
        for (key, amount) in [
            ("bw", self.bw),
            ("bw-burst", self.bw_burst),
            ("iops", self.iops),
            ("iops-burst", self.iops_burst),
        ] {
            if let Some(amount) = amount
                && !RANGE.contains(&amount)
            {
                let cause = format!("it is {IN_WORDS}");
                return Err(OptionError::Value(key, amount.to_string(), cause));
            }
        }
        for (key, base, burst, rate) in [
            ("bw-burst", "bw", self.bw_burst, self.bw),
            ("iops-burst", "iops", self.iops_burst, self.iops),
        ] {
            if let (Some(burst), None) = (burst, rate) {
                let cause = format!("without {base} nothing is limited; give {base} as well");
                return Err(OptionError::Value(key, burst.to_string(), cause));
            }
        }
        Ok(())
    }
}

/// An amount as text; the message of any number that is none has the range.
fn amount(text: &str) -> Result<u64, String> {
    parse_size(text, 0, IN_WORDS).and_then(|amount| match RANGE.contains(&amount) {
        true => Ok(amount),
        false => Err(format!("it is {IN_WORDS}")),
    })
}

/// `10485760` or `"10M"`, as a limit.
fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let size: Option<Size> = Option::deserialize(from)?;
    let amount = |size: Size| amount(&size.0).map_err(|cause| size.wrong(&cause));
    size.map(amount).transpose().map_err(D::Error::custom)
}

/// Limits as a table. What serde derives would take a list of values as well.
pub(crate) fn table<'de, D: Deserializer<'de>>(from: D) -> Result<Limits, D::Error> {
    struct Table;
    impl<'de> Visitor<'de> for Table {
        type Value = Limits;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table with bw, bw-burst, iops or iops-burst")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Limits, A::Error> {
            Limits::deserialize(MapAccessDeserializer::new(map))
        }
    }
    from.deserialize_any(Table)
}

/// What [`bytes`] takes.
#[cfg(feature = "schema")]
fn amount_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": ["integer", "string", "null"],
        "minimum": RANGE.start(),
        "maximum": RANGE.end(),
        "pattern": "^[0-9]+[KMGTkmgt]?(i?[Bb])?$",
    })
}
