//! How much may pass of something: one bucket of limits.

use std::ops::RangeInclusive;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::{Size, parse_size};

/// Beyond that, a bucket's level would not fit; no device is as fast.
pub(super) const RANGE: RangeInclusive<u64> = 1..=1 << 50;
pub(super) const IN_WORDS: &str = "1 to 1024T";

/// Of a rate, 0 is none.
pub(super) const AMOUNT: RangeInclusive<u64> = 0..=*RANGE.end();
pub(super) const AMOUNT_IN_WORDS: &str = "0 to 1024T";

/// How much may pass of something, bytes or requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rate {
    /// What comes in the time of `refill`; 0: there is no limit.
    #[serde(deserialize_with = "required")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "required_schema"))]
    pub amount: u64,
    /// What may go at once after a pause; without it, `amount`.
    #[serde(
        default,
        deserialize_with = "optional",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "schema", schemars(schema_with = "amount_schema"))]
    pub burst: Option<u64>,
    /// In milliseconds; without it, a second.
    #[serde(
        default,
        deserialize_with = "optional",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "schema", schemars(schema_with = "amount_schema"))]
    pub refill: Option<u64>,
    /// What may go before any of that, once.
    #[serde(
        default,
        deserialize_with = "optional",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "schema", schemars(schema_with = "amount_schema"))]
    pub once: Option<u64>,
}

/// An amount as text; the message of any number that is none has the range.
pub(super) fn amount(
    text: &str,
    range: &RangeInclusive<u64>,
    in_words: &str,
) -> Result<u64, String> {
    parse_size(text, 0, in_words).and_then(|amount| match range.contains(&amount) {
        true => Ok(amount),
        false => Err(format!("it is {in_words}")),
    })
}

/// `10485760` or `"10M"`, as a limit.
pub(super) fn optional<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let size: Option<Size> = Option::deserialize(from)?;
    let amount = |size: Size| amount(&size.0, &RANGE, IN_WORDS).map_err(|cause| size.wrong(&cause));
    size.map(amount).transpose().map_err(D::Error::custom)
}

fn required<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let size = Size::deserialize(from)?;
    let amount = amount(&size.0, &AMOUNT, AMOUNT_IN_WORDS);
    amount.map_err(|cause| D::Error::custom(size.wrong(&cause)))
}

/// What [`required`] takes.
#[cfg(feature = "schema")]
fn required_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": ["integer", "string"],
        "minimum": AMOUNT.start(),
        "maximum": AMOUNT.end(),
        "pattern": "^[0-9]+[KMGTkmgt]?(i?[Bb])?$",
    })
}

/// What [`optional`] takes.
#[cfg(feature = "schema")]
pub(super) fn amount_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": ["integer", "string", "null"],
        "minimum": RANGE.start(),
        "maximum": RANGE.end(),
        "pattern": "^[0-9]+[KMGTkmgt]?(i?[Bb])?$",
    })
}
