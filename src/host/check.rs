//! What a check of the host found, and how much it matters.

use std::error::Error as _;

use crate::Error;

/// How much a check's finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// VMs run, but something that some of them need is missing, or limited.
    Warn,
    /// No VM runs on this host.
    Fail,
}

/// What one check of [`diagnose`](crate::diagnose) found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// The check's name for programs, in snake_case; it does not change.
    pub name: &'static str,
    /// What was looked at, for people.
    pub what: &'static str,
    /// How much it matters.
    pub level: Level,
    /// What was found, or what is wrong, on one line.
    pub found: String,
    /// What to do about it, on one line, where something can be done.
    pub cure: Option<String>,
}

impl Check {
    /// It is as it should be.
    #[must_use]
    pub fn ok(name: &'static str, what: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            what,
            level: Level::Ok,
            found: found.into(),
            cure: None,
        }
    }

    /// Some VMs miss something; `cure` says what to do.
    #[must_use]
    pub fn warn(
        name: &'static str,
        what: &'static str,
        found: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self {
            level: Level::Warn,
            cure: Some(cure.into()),
            ..Self::ok(name, what, found)
        }
    }

    /// Something that no VM can do without.
    pub(super) fn needed(
        name: &'static str,
        what: &'static str,
        result: Result<String, &Error>,
    ) -> Self {
        match result {
            Ok(found) => Self::ok(name, what, found),
            Err(error) => {
                let cause = error.source().map(|cause| format!(": {cause}"));
                Self {
                    level: Level::Fail,
                    cure: error.cure().map(str::to_owned),
                    ..Self::ok(name, what, format!("{error}{}", cause.unwrap_or_default()))
                }
            }
        }
    }
}
