//! The short text that describes a device on the command line: `first,key=value,flag`.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::OptionError;

/// What may stand at the beginning of a text without its key in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// The value of this key: a path, which may have an `=` in it. Whatever does not begin with a
    /// known key and `=` is one.
    Path(&'static str),
    /// The value of this key, which has no `=`.
    Name(&'static str),
    /// Nothing: every part is an option.
    Option,
}

/// Splits a text into keys and values. `known` are the keys, with `=` behind those that take a value.
/// A value in double quotes may hold commas; two double quotes in it stand for one. Nothing between two
/// commas, or behind `=`, is a mistake.
///
/// # Errors
/// Names the part and what is wrong with it: an unknown key, one that stands twice, a quote that does not end.
pub fn options<'a>(
    text: &'a str,
    first: First,
    known: &'static [&'static str],
) -> Result<Vec<(&'static str, Cow<'a, str>)>, OptionError> {
    let find = |wanted: &str| {
        let mut keys = known.iter().map(|key| key.trim_end_matches('='));
        keys.find(|key| *key == wanted)
    };
    let unknown = |key: &str| Err(OptionError::Unknown(key.to_owned(), list(known, first)));
    let mut found: Vec<(&'static str, Cow<'a, str>)> = Vec::new();
    let mut bare = None;
    // No text at all is no option.
    let mut rest = Some(text).filter(|text| !text.is_empty());
    let mut at_start = true;
    while let Some(here) = rest {
        let head = here.split(',').next().unwrap_or_default();
        let key = head.split_once('=').map(|(key, _)| key);
        if head.is_empty() {
            return Err(OptionError::Empty);
        }
        let (key, value) = match (key.map(|key| (key, find(key))), first) {
            (Some((name, Some(key))), _) => (key, here.get(name.len() + 1..).unwrap_or_default()),
            (Some(_), First::Path(key)) | (None, First::Path(key) | First::Name(key))
                if at_start =>
            {
                bare = Some(head);
                (key, here)
            }
            (Some((name, None)), _) => return unknown(name),
            (None, _) => match find(head) {
                Some(key) => (key, here.get(head.len()..).unwrap_or_default()),
                None => return unknown(head),
            },
        };
        let is_bare = bare == Some(head) && at_start;
        let has_value = !is_bare && head.len() > key.len();
        let (value, behind) = value_of(value, key)?;
        if has_value && value.is_empty() {
            let cause = match known.contains(&key) {
                true => format!("it is empty; {key} alone means on"),
                false => "it is empty; give a value, or leave it away".to_owned(),
            };
            return Err(OptionError::Value(key, String::new(), cause));
        }
        rest = behind;
        at_start = false;
        if found.iter().any(|(other, _)| *other == key) {
            return match bare.and_then(|bare| bare.split_once('=')) {
                // What was taken for a path was none.
                Some((name, _)) if First::Path(key) == first => unknown(name),
                _ => Err(OptionError::Twice(key)),
            };
        }
        found.push((key, value));
    }
    Ok(found)
}

/// The value that a text begins with, and what is behind the comma that ends it.
fn value_of<'a>(
    text: &'a str,
    key: &'static str,
) -> Result<(Cow<'a, str>, Option<&'a str>), OptionError> {
    let Some(mut rest) = text.strip_prefix('"') else {
        return Ok(match text.split_once(',') {
            Some((value, rest)) => (value.into(), Some(rest)),
            None => (text.into(), None),
        });
    };
    let wrong = |cause: &str| OptionError::Value(key, text.to_owned(), cause.to_owned());
    let mut value = String::new();
    loop {
        let (part, behind) = rest
            .split_once('"')
            .ok_or_else(|| wrong("the closing double quote is missing"))?;
        value.push_str(part);
        match behind.strip_prefix('"') {
            Some(more) => {
                value.push('"');
                rest = more;
            }
            None if behind.is_empty() => return Ok((value.into(), None)),
            None => {
                let behind = behind
                    .strip_prefix(',')
                    .ok_or_else(|| wrong("behind the closing double quote, a comma comes"))?;
                return Ok((value.into(), Some(behind)));
            }
        }
    }
}

/// The options there are, in a sentence.
fn list(known: &[&str], first: First) -> String {
    let (last, others) = known.split_last().unwrap_or((&"none", &[]));
    let hint = match first {
        First::Path(key) => format!("; a path with a comma stands in double quotes: {key}=\"a,b\""),
        _ => String::new(),
    };
    format!("{} and {last}{hint}", others.join(", "))
}

/// What a number may be, in words.
pub(super) fn in_words<T: fmt::Display>(range: &RangeInclusive<T>) -> String {
    format!("{} to {}", range.start(), range.end())
}

/// A number that has to lie in a range, however it is written.
pub(super) fn number<T>(
    key: &'static str,
    text: &str,
    range: &RangeInclusive<T>,
) -> Result<T, OptionError>
where
    T: TryFrom<i128> + PartialOrd + fmt::Display,
{
    let number = text.parse::<i128>().ok();
    number
        .and_then(|number| T::try_from(number).ok())
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            let cause = format!("it is {}", in_words(range));
            OptionError::Value(key, text.to_owned(), cause)
        })
}

/// Checks a number that a program has given.
pub(super) fn within<T: PartialOrd + fmt::Display>(
    key: &'static str,
    found: T,
    range: &RangeInclusive<T>,
) -> Result<(), OptionError> {
    if range.contains(&found) {
        return Ok(());
    }
    let cause = format!("it is {}", in_words(range));
    Err(OptionError::Value(key, found.to_string(), cause))
}

pub(super) fn value<T: FromStr<Err: fmt::Display>>(
    key: &'static str,
    text: &str,
) -> Result<T, OptionError> {
    text.parse()
        .map_err(|error: T::Err| OptionError::Value(key, text.to_owned(), error.to_string()))
}

pub(super) fn on_or_off(key: &'static str, text: &str) -> Result<bool, OptionError> {
    match text {
        "" | "on" => Ok(true),
        "off" => Ok(false),
        _ => {
            let cause = format!("it is on or off; {key} alone means on");
            Err(OptionError::Value(key, text.to_owned(), cause))
        }
    }
}

/// A number with an optional unit `B`, `K`, `M`, `G` or `T` (powers of 1024; `KiB` and `KB` are `K`), up to
/// `16777215T`; `plain` is the power of two that a number without one counts. `in_words` says in a message what
/// the size may be, after "it is".
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_size(text: &str, plain: u32, in_words: &str) -> Result<u64, String> {
    let upper = text.trim().to_ascii_uppercase();
    let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let long = upper
        .strip_suffix("IB")
        .or_else(|| upper.strip_suffix('B'))
        .unwrap_or(&upper);
    let unit = units
        .iter()
        .find_map(|(unit, shift)| Some((long.strip_suffix(*unit)?, *shift)));
    let (number, shift) = match (unit, upper.strip_suffix('B')) {
        (Some(found), _) => found,
        (None, Some(bytes)) => (bytes, 0),
        (None, None) => (&*upper, plain),
    };
    let digits = number.strip_prefix(['-', '+']).unwrap_or(number);
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err("not a number; write 1024, 512M or 2G".to_owned());
    }
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| format!("it is {in_words}"))
}
