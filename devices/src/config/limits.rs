//! How much of something a device may do.

use std::fmt;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::OptionError;
#[cfg(feature = "schema")]
use super::rate::amount_schema;
use super::rate::{IN_WORDS, RANGE, Rate, amount, optional};
use super::text::{First, options};

/// How much of something a device may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes per second, or in the time that `bw_refill` is.
    #[serde(deserialize_with = "optional")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "amount_schema"))]
    pub bw: Option<u64>,
    /// Bytes that may go at once after a pause; without it, as many as `bw`.
    #[serde(deserialize_with = "optional")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "amount_schema"))]
    pub bw_burst: Option<u64>,
    /// The time in which as many bytes come as `bw` is, in milliseconds; without it, a second.
    #[serde(deserialize_with = "optional")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "amount_schema"))]
    pub bw_refill: Option<u64>,
    /// Bytes that may go before any of those, once: they do not come again.
    #[serde(deserialize_with = "optional")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "amount_schema"))]
    pub bw_once: Option<u64>,
    /// Requests (or packets) per second, or in the time that `iops_refill` is.
    #[serde(deserialize_with = "optional")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "amount_schema"))]
    pub iops: Option<u64>,
    /// Requests that may go at once after a pause; without it, as many as `iops`.
    #[serde(deserialize_with = "optional")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "amount_schema"))]
    pub iops_burst: Option<u64>,
    /// As `bw_refill`.
    #[serde(deserialize_with = "optional")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "amount_schema"))]
    pub iops_refill: Option<u64>,
    /// As `bw_once`.
    #[serde(deserialize_with = "optional")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "amount_schema"))]
    pub iops_once: Option<u64>,
}

/// The options of limits, those of bytes and those of requests.
pub(super) type Keys = [&'static str; 8];

impl Limits {
    /// The options that its text may have.
    pub const OPTIONS: &'static [&'static str] = &[
        "bw=",
        "bw-burst=",
        "bw-refill=",
        "bw-once=",
        "iops=",
        "iops-burst=",
        "iops-refill=",
        "iops-once=",
    ];
    /// The same without `=`, in the order of the fields.
    pub(super) const KEYS: Keys = [
        "bw",
        "bw-burst",
        "bw-refill",
        "bw-once",
        "iops",
        "iops-burst",
        "iops-refill",
        "iops-once",
    ];
    /// Likewise, of a network device's limits of one direction.
    pub(super) const RX_KEYS: Keys = [
        "rx-bw",
        "rx-bw-burst",
        "rx-bw-refill",
        "rx-bw-once",
        "rx-iops",
        "rx-iops-burst",
        "rx-iops-refill",
        "rx-iops-once",
    ];
    pub(super) const TX_KEYS: Keys = [
        "tx-bw",
        "tx-bw-burst",
        "tx-bw-refill",
        "tx-bw-once",
        "tx-iops",
        "tx-iops-burst",
        "tx-iops-refill",
        "tx-iops-once",
    ];

    fn amounts(&self) -> [Option<u64>; 8] {
        [
            self.bw,
            self.bw_burst,
            self.bw_refill,
            self.bw_once,
            self.iops,
            self.iops_burst,
            self.iops_refill,
            self.iops_once,
        ]
    }

    /// What is said of bytes, and of requests.
    #[cfg_attr(not(feature = "virtio"), allow(dead_code))]
    pub(crate) fn rates(&self) -> [Option<Rate>; 2] {
        let bytes = self.bw.map(|amount| Rate {
            amount,
            burst: self.bw_burst,
            refill: self.bw_refill,
            once: self.bw_once,
        });
        let requests = self.iops.map(|amount| Rate {
            amount,
            burst: self.iops_burst,
            refill: self.iops_refill,
            once: self.iops_once,
        });
        [bytes, requests]
    }

    /// The reverse.
    #[cfg_attr(not(feature = "virtio"), allow(dead_code))]
    pub(crate) fn of_rates([bytes, requests]: [Option<Rate>; 2]) -> Self {
        let part =
            |rate: Option<Rate>, part: fn(&Rate) -> Option<u64>| rate.as_ref().and_then(part);
        Self {
            bw: bytes.map(|rate| rate.amount),
            bw_burst: part(bytes, |rate| rate.burst),
            bw_refill: part(bytes, |rate| rate.refill),
            bw_once: part(bytes, |rate| rate.once),
            iops: requests.map(|rate| rate.amount),
            iops_burst: part(requests, |rate| rate.burst),
            iops_refill: part(requests, |rate| rate.refill),
            iops_once: part(requests, |rate| rate.once),
        }
    }
}

/// The options of a text of limits alone, `bw=10M,iops=100`, with blanks instead of commas too.
pub(super) fn limit_options(text: &str) -> Result<Vec<(&'static str, String)>, OptionError> {
    let mut joined = String::new();
    for word in text.split_ascii_whitespace() {
        // The comma may be there already.
        if !(joined.is_empty() || joined.ends_with(',')) {
            joined.push(',');
        }
        joined.push_str(word);
    }
    let found = options(&joined, First::Option, Limits::OPTIONS)?;
    let owned = found
        .into_iter()
        .map(|(key, text)| (key, text.into_owned()));
    Ok(owned.collect())
}

/// `bw=10M,iops=100`, with blanks instead of commas too; `none` for no limits.
impl FromStr for Limits {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut limits = Self::default();
        if text.trim_ascii() == "none" {
            return Ok(limits);
        }
        let found = limit_options(text)?;
        if found.is_empty() {
            return Err(OptionError::Missing(
                "limit",
                "none, or bw=, iops= and more",
            ));
        }
        for (key, text) in found {
            limits.take(&Self::KEYS, key, &text)?;
        }
        limits.check()?;
        Ok(limits)
    }
}

/// As text that gives the same limits again.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut blank = "";
        for (key, amount) in Self::KEYS.iter().zip(self.amounts()) {
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
    /// Takes an option if it is one of these. Says whether it was.
    pub(super) fn take(&mut self, keys: &Keys, key: &str, text: &str) -> Result<bool, OptionError> {
        let fields = [
            &mut self.bw,
            &mut self.bw_burst,
            &mut self.bw_refill,
            &mut self.bw_once,
            &mut self.iops,
            &mut self.iops_burst,
            &mut self.iops_refill,
            &mut self.iops_once,
        ];
        let Some((key, field)) = keys.iter().zip(fields).find(|(found, _)| **found == key) else {
            return Ok(false);
        };
        let wrong = |cause| OptionError::Value(key, text.to_owned(), cause);
        *field = Some(amount(text, &RANGE, IN_WORDS).map_err(wrong)?);
        Ok(true)
    }

    /// Checks every value, whoever gave it.
    ///
    /// # Errors
    /// Names the option and what it takes.
    pub fn check(&self) -> Result<(), OptionError> {
        self.check_as(&Self::KEYS)
    }

    /// The same, where they have these names.
    pub(super) fn check_as(&self, keys: &Keys) -> Result<(), OptionError> {
        let amounts = self.amounts();
        for (key, amount) in keys.iter().zip(amounts) {
            if let Some(amount) = amount
                && !RANGE.contains(&amount)
            {
                let cause = format!("it is {IN_WORDS}");
                return Err(OptionError::Value(key, amount.to_string(), cause));
            }
        }
        for (keys, amounts) in keys.chunks(4).zip(amounts.chunks(4)) {
            let ([base, keys @ ..], [None, amounts @ ..]) = (keys, amounts) else {
                continue;
            };
            for (key, amount) in keys.iter().zip(amounts) {
                if let Some(amount) = amount {
                    let cause = format!("without {base} nothing is limited; give {base} as well");
                    return Err(OptionError::Value(key, amount.to_string(), cause));
                }
            }
        }
        Ok(())
    }
}

/// Limits as a table. What serde derives would take a list of values as well.
///
/// # Errors
/// Says what is wrong with it.
pub fn table<'de, D: Deserializer<'de>>(from: D) -> Result<Limits, D::Error> {
    struct Table;
    impl<'de> Visitor<'de> for Table {
        type Value = Limits;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table with bw, iops and more")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Limits, A::Error> {
            Limits::deserialize(MapAccessDeserializer::new(map))
        }
    }
    from.deserialize_any(Table)
}

/// The same, where there may be none.
pub(crate) fn optional_table<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Limits>, D::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Inner(#[serde(deserialize_with = "table")] Limits);
    Ok(Option::deserialize(from)?.map(|Inner(limits)| limits))
}
