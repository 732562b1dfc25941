//! Values that are words, and the words there are: taken from what serde derives, so that no second list stands
//! beside an enumeration.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::Deserializer;
use serde::de::value::StrDeserializer;
use serde::de::{DeserializeOwned, Error, IntoDeserializer, Visitor};

/// The error of a word that no enumeration has: the words that it does have.
#[derive(Debug)]
struct Asked(&'static [&'static str]);

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_of(self.0))
    }
}

impl std::error::Error for Asked {}

impl Error for Asked {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }

    fn unknown_variant(_: &str, known: &'static [&'static str]) -> Self {
        Self(known)
    }
}

/// The names of an enumeration's variants, as a file has them. None for any other type.
#[must_use]
pub fn words_of<T: DeserializeOwned>() -> &'static [&'static str] {
    let no_word: StrDeserializer<'_, Asked> = "".into_deserializer();
    T::deserialize(no_word).map_or_else(|Asked(known)| known, |_| &[])
}

/// Words in a sentence: `auto, on or off`.
#[must_use]
pub fn one_of(words: &[&str]) -> String {
    match words.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => "nothing".to_owned(),
    }
}

/// One of the words that a type knows, as a text. Whatever else stands there, the message says which there are.
///
/// # Errors
/// When there is another word, or anything else.
pub fn word<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<T, D::Error> {
    struct Word<T>(PhantomData<T>);

    impl<T: DeserializeOwned> Visitor<'_> for Word<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&one_of(words_of::<T>()))
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            T::deserialize(text.into_deserializer())
        }
    }

    from.deserialize_any(Word(PhantomData))
}

/// One of the words that a type knows; what is wrong with another one, in a sentence.
pub(super) fn parse_word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let text: StrDeserializer<'_, Asked> = text.into_deserializer();
    T::deserialize(text).map_err(|known| format!("it is {known}"))
}

/// A value that has a text. `in_words` says in a message what it may be, after "it is".
///
/// # Errors
/// When the text is none of these, or there is no text.
pub fn with_text<'de, D, T>(from: D, in_words: &'static str) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    struct Text<T>(&'static str, PhantomData<T>);

    impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    from.deserialize_any(Text(in_words, PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BlkConfig, BlkEngine};

    #[test]
    fn an_enumeration_knows_its_words() {
        assert_eq!(words_of::<BlkEngine>(), ["auto", "io_uring", "sync"]);
        assert_eq!(words_of::<crate::Overflow>(), ["wait", "drop"]);
        assert!(words_of::<BlkConfig>().is_empty() && words_of::<String>().is_empty());
        assert_eq!(one_of(words_of::<BlkEngine>()), "auto, io_uring or sync");
        assert_eq!((&*one_of(&["a"]), &*one_of(&[])), ("a", "nothing"));
    }
}
