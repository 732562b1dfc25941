//! How the values of devices stand in a file. Messages name what a value may be in plain words.

use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::text::in_words;
use super::{parse_size, ranges};

/// What a plain number counts where it counts no bytes, as on the command line.
const MIB: u32 = 20;

/// A whole number. Whatever else stands there, the message says which ones are right.
struct Whole<'a, T> {
    range: &'a RangeInclusive<T>,
    in_words: &'a str,
}

impl<T> Whole<'_, T> {
    fn take<E: Error>(self, number: i128) -> Result<T, E>
    where
        T: TryFrom<i128> + PartialOrd,
    {
        T::try_from(number)
            .ok()
            .filter(|number| self.range.contains(number))
            .ok_or_else(|| {
                let found = format!("integer `{number}`");
                E::invalid_value(Unexpected::Other(&found), &self.in_words)
            })
    }
}

impl<T: TryFrom<i128> + PartialOrd> Visitor<'_> for Whole<'_, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.in_words)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        self.take(number.into())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        self.take(number.into())
    }

    fn visit_i128<E: Error>(self, number: i128) -> Result<T, E> {
        self.take(number)
    }

    fn visit_u128<E: Error>(self, number: u128) -> Result<T, E> {
        self.take(i128::try_from(number).unwrap_or(i128::MAX))
    }
}

/// A whole number of a file, which lies in `range`; `in_words` says so in a message, after "it is".
///
/// # Errors
/// When there is anything else.
pub fn whole_number<'de, D, T>(
    from: D,
    range: &RangeInclusive<T>,
    in_words: &str,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<i128> + PartialOrd,
{
    from.deserialize_any(Whole { range, in_words })
}

/// A number for each range that is named in `ranges`.
macro_rules! ranged {
    ($($name:ident: $type:ty = $range:ident;)*) => {$(
        pub(crate) fn $name<'de, D: Deserializer<'de>>(from: D) -> Result<$type, D::Error> {
            whole_number(from, &ranges::$range, &in_words(&ranges::$range))
        }
    )*};
}

ranged! {
    blk_queues: u16 = BLK_QUEUES;
    net_queues: u16 = NET_QUEUES;
    cid: u32 = CID;
    descriptor: i32 = FD;
    packet: u16 = MTU;
    stats_interval: u32 = STATS_INTERVAL;
}

pub(super) fn queue_size<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
    let words = format!("a power of two, {}", in_words(&ranges::QUEUE_SIZE));
    let size: u16 = whole_number(from, &ranges::QUEUE_SIZE, &words)?;
    if size.is_power_of_two() {
        return Ok(size);
    }
    let found = Unexpected::Unsigned(size.into());
    Err(D::Error::invalid_value(found, &&*words))
}

pub(super) fn fd<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Descriptor(#[serde(deserialize_with = "descriptor")] i32);
    Ok(Option::deserialize(from)?.map(|Descriptor(fd)| fd))
}

pub(super) fn mtu<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Packet(#[serde(deserialize_with = "packet")] u16);
    Ok(Option::deserialize(from)?.map(|Packet(mtu)| mtu))
}

/// A size as it stands in a file: a number whose unit the key knows, or a text with its unit.
#[derive(Debug)]
pub struct Size(pub(super) String);

impl Size {
    /// The size in bytes; the rest as for [`parse_size`].
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn bytes(&self, plain: u32, in_words: &str) -> Result<u64, String> {
        parse_size(&self.0, plain, in_words).map_err(|cause| self.wrong(&cause))
    }

    pub(super) fn wrong(&self, cause: &str) -> String {
        format!("{:?}: {cause}", self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or a text like \"512M\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                Ok(Size(text.to_owned()))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Size, E> {
                Ok(Size(number.to_string()))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Size, E> {
                Ok(Size(number.to_string()))
            }
        }
        from.deserialize_any(Form)
    }
}

/// Always with a unit.
pub(super) fn with_unit<S: Serializer>(size: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
    size.map(size_with_unit).serialize(to)
}

/// A size as [`parse_size`] takes it, whatever a plain number would count.
#[must_use]
pub fn size_with_unit(size: u64) -> String {
    match size {
        _ if size.is_multiple_of(1 << MIB) => format!("{}M", size >> MIB),
        _ => format!("{size}B"),
    }
}
