//! What of a machine's state is the same on every architecture: bytes that mean something to the hardware only, and
//! what a machine was promised and a host has not.

use std::fmt;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes whose layout is the hardware's or the kernel's: a text of hexadecimal digits where they are saved.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Bytes {
    /// The number that they are, the lowest byte first, as messages show it.
    #[must_use]
    pub fn number(&self) -> String {
        let digits = self.0.iter().rev().map(|byte| format!("{byte:02x}"));
        let digits: String = digits.collect();
        format!("0x{}", if digits.is_empty() { "0" } else { &digits })
    }
}

const DIGITS: [char; 16] = [
    '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
];

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let digit = |half: u8| DIGITS[usize::from(half)];
        let text: String = self
            .0
            .iter()
            .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
            .collect();
        to.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let digit = |digit: u8| char::from(digit).to_digit(16);
        let byte = |pair: &[u8]| match pair {
            [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
            _ => None,
        };
        let bytes: Option<_> = text.as_bytes().chunks(2).map(byte).collect();
        bytes
            .map(Self)
            .ok_or_else(|| D::Error::custom("they are pairs of hexadecimal digits"))
    }
}

/// What a counter of this frequency counts in a time; beyond 64 bits as much as fits.
#[must_use]
pub fn ticks(time: Duration, hz: u64) -> u64 {
    let ticks = time.as_nanos().saturating_mul(hz.into()) / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// The state of what cannot be saved: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unsaved {}

/// Something that a saved machine was promised and a host has not.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// What it is, in words that may stand alone.
    pub what: String,
    /// What the machine had.
    pub saved: String,
    /// What the host has.
    pub here: String,
}

impl Difference {
    /// Values that differ.
    pub fn new(what: impl Into<String>, saved: impl fmt::Display, here: impl fmt::Display) -> Self {
        Self {
            what: what.into(),
            saved: saved.to_string(),
            here: here.to_string(),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, saved, here } = self;
        write!(f, "{what}: the saved machine has {saved}, this host {here}")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};

    use super::*;

    fn read(text: &str) -> Result<Bytes, Error> {
        let text: StrDeserializer<'_, Error> = text.into_deserializer();
        Bytes::deserialize(text)
    }

    #[test]
    fn a_counter_counts_in_any_time() {
        assert_eq!(
            ticks(Duration::from_nanos(2_000_000_002), 2_500_000_000),
            5_000_000_005
        );
        assert_eq!(ticks(Duration::ZERO, u64::MAX), 0);
        assert_eq!(ticks(Duration::MAX, u64::MAX), u64::MAX);
    }

    #[test]
    fn bytes_are_pairs_of_digits() {
        assert_eq!(read("").unwrap().0, []);
        assert_eq!(read("00ff7F").unwrap().0, [0, 0xff, 0x7f]);
        for wrong in ["0", "0g", "zz", "00 1", "é0", "+1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Bytes(vec![0x34, 0x12]).number(), "0x1234");
        assert_eq!(Bytes::default().number(), "0x0");
    }
}
