//! How devices stand in a file: as a table, or in the short text of the command line.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{BalloonConfig, BlkConfig, NetConfig, VsockConfig, parse_size};

/// What a plain number counts: bytes or MiB, as on the command line.
const BYTES: u32 = 0;
const MIB: u32 = 20;

/// Both forms of each type; the derived functions that `remote = "Self"` makes take the table.
macro_rules! text_or_table {
    ($($name:ident)*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Form;
                impl<'de> Visitor<'de> for Form {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a table or a text as on the command line")
                    }

                    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                        text.parse().map_err(E::custom)
                    }

                    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                        $name::deserialize(MapAccessDeserializer::new(map))
                    }
                }
                deserializer.deserialize_any(Form)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $name::serialize(self, serializer)
            }
        }
    )*};
}

text_or_table!(BalloonConfig BlkConfig NetConfig VsockConfig);

#[derive(Deserialize)]
#[serde(untagged, expecting = "it is a number, or a text like \"512M\"")]
enum Amount {
    Number(u64),
    Text(String),
}

fn amount<'de, D: Deserializer<'de>>(from: D, plain: u32) -> Result<Option<u64>, D::Error> {
    let text = match Option::deserialize(from)? {
        None => return Ok(None),
        Some(Amount::Number(number)) => number.to_string(),
        Some(Amount::Text(text)) => text,
    };
    parse_size(&text, plain).map(Some).map_err(D::Error::custom)
}

/// `10485760` or `"10M"`.
pub(super) fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    amount(from, BYTES)
}

/// `512` or `"512M"`.
pub(super) fn mib<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    amount(from, MIB)
}

/// Always with a unit.
pub(super) fn with_unit<S: Serializer>(size: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
    let text = size.map(|size| match size {
        _ if size.is_multiple_of(1 << MIB) => format!("{}M", size >> MIB),
        _ => format!("{size}B"),
    });
    text.serialize(to)
}
