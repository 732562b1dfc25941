//! What a user may say about a memory balloon.

use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::id::check_id;
use super::text::{First, number, on_or_off, options, parse_size, within};
use super::{OptionError, Size, file, id, ranges};

/// A memory balloon:
/// `[target=SIZE][,deflate-on-oom][,free-page-reporting][,free-page-hinting][,stats-interval=SECONDS]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    remote = "Self",
    rename_all = "kebab-case",
    deny_unknown_fields,
    default
)]
#[non_exhaustive]
pub struct BalloonConfig {
    /// What commands call it; without it, `balloon0`.
    #[serde(deserialize_with = "id::in_file")]
    pub id: Option<String>,
    /// Bytes of RAM that the guest is left with; without it, all.
    #[serde(deserialize_with = "target", serialize_with = "file::with_unit")]
    pub target: Option<u64>,
    /// The guest may take memory back before it runs out.
    pub deflate_on_oom: bool,
    /// The guest tells of pages that it has freed.
    pub free_page_reporting: bool,
    /// The guest can be asked for all pages that it has free.
    pub free_page_hinting: bool,
    /// How often the guest is asked for its statistics, in seconds; 0: only when a command asks for them.
    #[serde(deserialize_with = "file::stats_interval")]
    pub stats_interval: u32,
}

/// What a target may be, as far as no guest is known.
const TARGET: &str = "1B to the guest's memory";

/// What a plain number counts.
const MIB: u32 = 20;

/// The target in a file, `512` or `"512M"`.
fn target<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let size: Option<Size> = Option::deserialize(from)?;
    size.map(|size| size.bytes(MIB, TARGET))
        .transpose()
        .map_err(D::Error::custom)
}

/// Checks the seconds between two times that the guest is asked for its statistics.
pub(crate) fn check_stats_interval(seconds: u32) -> Result<(), OptionError> {
    within("stats-interval", seconds, &ranges::STATS_INTERVAL)
}

impl FromStr for BalloonConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut balloon = Self::default();
        for (key, text) in options(text, First::Option, Self::OPTIONS)? {
            match key {
                "target" => {
                    let target = parse_size(&text, MIB, TARGET)
                        .map_err(|cause| OptionError::Value(key, text.into_owned(), cause))?;
                    balloon.target = Some(target);
                }
                "id" => balloon.id = Some(text.into_owned()),
                "deflate-on-oom" => balloon.deflate_on_oom = on_or_off(key, &text)?,
                "free-page-reporting" => balloon.free_page_reporting = on_or_off(key, &text)?,
                "free-page-hinting" => balloon.free_page_hinting = on_or_off(key, &text)?,
                _ => balloon.stats_interval = number(key, &text, &ranges::STATS_INTERVAL)?,
            }
        }
        balloon.check()?;
        Ok(balloon)
    }
}

impl BalloonConfig {
    /// The options that its text may have, with `=` behind those that take a value.
    pub const OPTIONS: &'static [&'static str] = &[
        "target=",
        "id=",
        "deflate-on-oom",
        "free-page-reporting",
        "free-page-hinting",
        "stats-interval=",
    ];

    /// How many queues the device has: inflate, deflate, statistics, then those of hints and reports by their
    /// numbers in the specification (VIRTIO 1.3, 5.5.2).
    #[must_use]
    pub fn queue_count(&self) -> u32 {
        match (self.free_page_reporting, self.free_page_hinting) {
            (true, _) => 5,
            (false, true) => 4,
            (false, false) => 3,
        }
    }

    /// Checks every value, whoever gave it.
    ///
    /// # Errors
    /// Names the option and what it takes.
    pub fn check(&self) -> Result<(), OptionError> {
        check_id(self.id.as_deref())?;
        if self.target == Some(0) {
            let cause = "the guest would be left with no memory; give what it may keep";
            return Err(OptionError::Value(
                "target",
                "0".to_owned(),
                cause.to_owned(),
            ));
        }
        check_stats_interval(self.stats_interval)
    }
}
