//! The two forms that a device has in a file: a table, or the short text of the command line.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{BalloonConfig, BlkConfig, NetConfig, VsockConfig};

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
                        let found = $name::deserialize(MapAccessDeserializer::new(map))?;
                        found.check().map_err(A::Error::custom)?;
                        Ok(found)
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
