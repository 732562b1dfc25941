//! Where a value stands in a configuration.

use std::borrow::Cow;
use std::fmt;

/// The path of a value in a configuration: `kernel`, `blk[0].path`, `net[1].limits.bw`. Keys are those of
/// the configuration, places in a list count from 0.
///
/// ```
/// use arch::ConfigPath;
///
/// let path = ConfigPath::from("net").item(1).key("mtu");
/// assert_eq!(path.to_string(), "net[1].mtu");
/// assert_eq!((path.first(), path.index(), path.rest()), ("net", Some(1), "mtu"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConfigPath(Cow<'static, str>);

impl ConfigPath {
    /// The path of an entry of the list that this path names.
    #[must_use]
    pub fn item(self, index: usize) -> Self {
        Self(format!("{self}[{index}]").into())
    }

    /// The path of a value in the table that this path names.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        Self(format!("{self}.{key}").into())
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key that it begins with.
    #[must_use]
    pub fn first(&self) -> &str {
        self.0.split(['[', '.']).next().unwrap_or_default()
    }

    /// The place in the list that the first key names, if it names one.
    #[must_use]
    pub fn index(&self) -> Option<usize> {
        let (_, rest) = self.0.split_once('[')?;
        rest.split(']').next()?.parse().ok()
    }

    /// The keys behind the first one and its index; empty when there are none.
    #[must_use]
    pub fn rest(&self) -> &str {
        self.0.split_once('.').map_or("", |(_, rest)| rest)
    }

    /// `path=value`, or the path alone where there is no value.
    #[must_use]
    pub fn with_value(&self, value: &str) -> String {
        if value.is_empty() {
            self.to_string()
        } else {
            format!("{self}={value}")
        }
    }
}

impl From<&'static str> for ConfigPath {
    fn from(key: &'static str) -> Self {
        Self(key.into())
    }
}

impl PartialEq<str> for ConfigPath {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for ConfigPath {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl fmt::Display for ConfigPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_comes_apart_into_what_it_was_made_of() {
        for (path, text, parts) in [
            (ConfigPath::from("kernel"), "kernel", ("kernel", None, "")),
            (
                ConfigPath::from("balloon").key("target"),
                "balloon.target",
                ("balloon", None, "target"),
            ),
            (
                ConfigPath::from("blk").item(12),
                "blk[12]",
                ("blk", Some(12), ""),
            ),
            (
                ConfigPath::from("blk").item(0).key("limits").key("bw"),
                "blk[0].limits.bw",
                ("blk", Some(0), "limits.bw"),
            ),
        ] {
            assert_eq!(path, text);
            assert_eq!((path.first(), path.index(), path.rest()), parts);
        }
    }

    #[test]
    fn no_value_leaves_no_equals_sign() {
        let path = ConfigPath::from("vcpus");
        assert_eq!(path.with_value("0"), "vcpus=0");
        assert_eq!(path.with_value(""), "vcpus");
    }
}
