//! A change of limits that leaves what it does not name as it is.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use super::limits::limit_options;
use super::rate::{AMOUNT, AMOUNT_IN_WORDS, amount};
use super::{Limits, OptionError, Rate, word};

/// Where frames of a network device go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To the guest.
    Rx,
    /// From the guest.
    Tx,
}

/// A change of limits that leaves what it does not name as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct LimitsChange {
    /// Of a network device, one direction; without it, both.
    #[serde(
        deserialize_with = "direction",
        skip_serializing_if = "Option::is_none"
    )]
    pub direction: Option<Direction>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bw: Option<Rate>,
    /// Requests, or packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops: Option<Rate>,
}

impl LimitsChange {
    /// From the words of [`Limits`], in which `bw=0` and `iops=0` take a limit away.
    ///
    /// # Errors
    /// Names the option and what it takes.
    pub fn parse(direction: Option<Direction>, text: &str) -> Result<Self, OptionError> {
        let (mut rest, mut bw, mut iops) = (Vec::new(), None, None);
        for (key, text) in limit_options(text)? {
            let rate = match key {
                "bw" => &mut bw,
                "iops" => &mut iops,
                _ => {
                    rest.push((key, text));
                    continue;
                }
            };
            let found = amount(&text, &AMOUNT, AMOUNT_IN_WORDS);
            *rate = Some(found.map_err(|cause| OptionError::Value(key, text, cause))?);
        }
        let mut limits = Limits::default();
        for (key, text) in rest {
            limits.take(&Limits::KEYS, key, &text)?;
        }
        (limits.bw, limits.iops) = (bw, iops);
        let [bw, iops] = limits.rates();
        if bw.is_none() && iops.is_none() {
            limits.check()?;
        }
        let change = Self {
            direction,
            bw,
            iops,
        };
        change.check()?;
        Ok(change)
    }

    /// Checks every value, whoever gave it.
    pub(crate) fn check(&self) -> Result<(), OptionError> {
        if self.bw.is_none() && self.iops.is_none() {
            return Err(OptionError::Missing("limit", "bw=, iops= or both"));
        }
        let some = |rate: Option<Rate>| rate.filter(|rate| *rate != Rate::default());
        let positive = |rate: Rate| Rate {
            amount: rate.amount.max(1),
            ..rate
        };
        let rates = [self.bw, self.iops].map(|rate| some(rate).map(positive));
        Limits::of_rates(rates).check()
    }
}

/// As `ctl` takes it behind `adjust-limits`.
impl fmt::Display for LimitsChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            None => "",
            Some(Direction::Rx) => "--direction=rx ",
            Some(Direction::Tx) => "--direction=tx ",
        };
        write!(f, "{direction}{}", Limits::of_rates([self.bw, self.iops]))
    }
}

fn direction<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Direction>, D::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Word(#[serde(deserialize_with = "word")] Direction);
    Ok(Option::deserialize(from)?.map(|Word(direction)| direction))
}
