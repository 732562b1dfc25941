//! Hardware addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use super::with_text;

/// A hardware address of a network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct Mac(pub [u8; 6]);

const WRONG: &str = "it is six hexadecimal numbers, 02:00:00:00:00:01";

impl FromStr for Mac {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(WRONG)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| WRONG)?;
        }
        if parts.next().is_some() {
            return Err(WRONG);
        }
        Self(mac).check()?;
        Ok(Self(mac))
    }
}

impl Mac {
    /// An address that many stations share is none for a device.
    pub(super) fn check(self) -> Result<(), &'static str> {
        if self.0 == [0; 6] {
            return Err("it is no address: all of it is zero");
        }
        if self.0[0] & 1 != 0 {
            return Err("it is no address of one station: the first number has to be even");
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        with_text(from, WRONG.trim_start_matches("it is "))
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
