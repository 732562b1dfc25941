//! Where values stand in a configuration file.
//!
//! What is wrong with a value may be found long after the file was read: by the platform, or by the host. The place
//! is looked up then, by reading the file's text again up to the value.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use vmm_reference::Step;

/// `blk[1].path` in its steps.
pub(super) fn steps(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for name in path.split('.') {
        let mut words = name.split(['[', ']']).filter(|word| !word.is_empty());
        steps.extend(words.next().map(|key| Step::Key(key.to_owned())));
        steps.extend(words.filter_map(|word| word.parse().ok().map(Step::Item)));
    }
    steps
}

/// Reads up to a value, or its key, and fails there, so that the parser's error says where that is; reads all and
/// succeeds when there is no such value. Of a value that stands in a device's text, that is where the text stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seek<'a> {
    steps: &'a [Step],
    /// The last step's key is looked for, not its value.
    key: bool,
}

impl<'a> Seek<'a> {
    /// Looks for the value at the end of these steps.
    pub(super) fn value(steps: &'a [Step]) -> Self {
        Self { steps, key: false }
    }

    /// Looks for the key that is the last of these steps.
    pub(super) fn key(steps: &'a [Step]) -> Self {
        Self { steps, key: true }
    }

    fn with(self, steps: &'a [Step]) -> Self {
        Self { steps, ..self }
    }
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

/// Reads a key; says whether it is this one, or fails if that is looked for.
struct Key<'a>(&'a str, Option<Seek<'a>>);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        match self {
            Self(wanted, Some(seek)) if key == wanted => Err(E::custom(seek)),
            Self(wanted, _) => Ok(key == wanted),
        }
    }
}

/// Makes the visitor's functions for values without parts.
macro_rules! found {
    ($($visit:ident: $value:ty,)*) => {
        $(fn $visit<E: Error>(self, _: $value) -> Result<(), E> {
            Err(E::custom(self))
        })*
    };
}

impl fmt::Display for Seek<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it stands here")
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }

    found! {
        visit_bool: bool,
        visit_i64: i64,
        visit_u64: u64,
        visit_f64: f64,
        visit_str: &str,
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Err(E::custom(self))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Key(wanted), rest)) = self.steps.split_first() else {
            return Err(A::Error::custom(self));
        };
        let itself = Some(self).filter(|_| self.key && rest.is_empty());
        while let Some(found) = map.next_key_seed(Key(wanted, itself))? {
            if found {
                map.next_value_seed(self.with(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((Step::Item(wanted), rest)) = self.steps.split_first() else {
            return Err(A::Error::custom(self));
        };
        for _ in 0..*wanted {
            if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        list.next_element_seed(self.with(rest))?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// The key whose value stands at a place of a TOML text that cannot be parsed, as far as its lines tell.
pub(super) fn toml_key(text: &str, place: usize) -> Option<String> {
    let name = |text: &str| {
        let name = text.trim();
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        (!name.is_empty() && name.chars().all(fits)).then(|| name.to_owned())
    };
    let mut lists: Vec<String> = Vec::new();
    let (mut table, mut key) = (String::new(), None);
    // Brackets of the value that are not closed yet: it goes on in the next line.
    let mut open = 0usize;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        if start > place {
            break;
        }
        start += line.len();
        let line = line.trim();
        let mut value = line;
        if open == 0 {
            key = None;
            value = "";
            let header = |from, to| line.strip_prefix(from)?.strip_suffix(to).and_then(name);
            if let Some(list) = header("[[", "]]") {
                let before = lists.iter().filter(|other| **other == list).count();
                table = format!("{list}[{before}].");
                lists.push(list);
            } else if let Some(name) = header("[", "]") {
                table = format!("{name}.");
            } else if let Some((before, behind)) = line.split_once('=') {
                key = name(before);
                value = behind;
            }
        }
        let opened = value.matches(['[', '{']).count();
        open = (open + opened).saturating_sub(value.matches([']', '}']).count());
    }
    key.map(|key| format!("{table}{key}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_keys_and_places() {
        let path = vmm_reference::ConfigPath::from("blk")
            .item(12)
            .key("limits")
            .key("bw");
        let key = |key: &str| Step::Key(key.to_owned());
        let expected = [key("blk"), Step::Item(12), key("limits"), key("bw")];
        assert_eq!(steps(path.as_str()), expected);
        assert_eq!(steps("vcpus"), [key("vcpus")]);
    }

    #[test]
    fn the_key_of_a_broken_value_is_the_one_before_it() {
        for (text, key) in [
            ("vcpus = ?", Some("vcpus")),
            ("kernel = \"k\"\nvcpus 2?", None),
            ("[balloon]\ntarget = ?", Some("balloon.target")),
            (
                "[[blk]]\npath = \"a\"\n[[net]]\n[[blk]]\nro = ?",
                Some("blk[1].ro"),
            ),
            ("blk = [\n\"a\",\n?", Some("blk")),
            ("blk = [\n\"a\",\n]\n?", None),
            ("net = [{ tap = ?", Some("net")),
            ("[[blk?", None),
            ("?", None),
        ] {
            let place = text.find('?').unwrap();
            assert_eq!(toml_key(text, place).as_deref(), key, "{text}");
        }
    }
}
