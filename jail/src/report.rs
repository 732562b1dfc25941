//! What a process has given up, and what the host has not let it give up.

use std::fmt;

/// What a jail takes from a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Part {
    /// A user namespace of its own: outside it the process has no rights but those of files and sockets it holds.
    UserNamespace,
    /// An empty root that cannot be written.
    Root,
    /// A network without interfaces.
    Network,
    /// System V objects and message queues of its own.
    Ipc,
    /// A name of the host of its own.
    HostName,
    /// No capabilities, and no way to get any.
    Capabilities,
    /// Limits of files, and no core dumps.
    Limits,
    /// Landlock: no files, no TCP.
    Files,
    /// Landlock: no signals to others, no abstract sockets of others.
    Signals,
    /// seccomp: this kernel can filter system calls. Each thread installs the filter of its own role.
    SystemCalls,
}

impl Part {
    pub(crate) const ALL: [Self; 10] = [
        Self::UserNamespace,
        Self::Root,
        Self::Network,
        Self::Ipc,
        Self::HostName,
        Self::Capabilities,
        Self::Limits,
        Self::Files,
        Self::Signals,
        Self::SystemCalls,
    ];

    /// Its name in a report, which is an interface for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::UserNamespace => "user-namespace",
            Self::Root => "root",
            Self::Network => "network",
            Self::Ipc => "ipc",
            Self::HostName => "host-name",
            Self::Capabilities => "capabilities",
            Self::Limits => "limits",
            Self::Files => "files",
            Self::Signals => "signals",
            Self::SystemCalls => "system-calls",
        }
    }
}

/// How much of a jail there is, for people. Ordered: more is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Level {
    /// None was asked for.
    Off,
    /// Less than Landlock and filters of system calls: somebody should be warned.
    Weak,
    /// Landlock and filters of system calls, but not every namespace.
    Filters,
    /// Everything.
    Full,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Weak => "weak",
            Self::Filters => "filters",
            Self::Full => "full",
        })
    }
}

/// What each part has become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    off: bool,
    /// What is not there, and why.
    missing: Vec<(Part, String)>,
}

impl Report {
    /// Nothing was asked for.
    pub(crate) fn off() -> Self {
        Self {
            off: true,
            missing: Vec::new(),
        }
    }

    /// Everything, until something is missing.
    pub(crate) fn full() -> Self {
        Self {
            off: false,
            missing: Vec::new(),
        }
    }

    pub(crate) fn miss(&mut self, part: Part, why: impl fmt::Display) {
        self.missing.push((part, why.to_string()));
    }

    /// Notes what a step came to.
    pub(crate) fn note<T>(&mut self, part: Part, step: Result<T, impl fmt::Display>) {
        if let Err(why) = step {
            self.miss(part, why);
        }
    }

    /// Whether the process has given this up.
    pub fn has(&self, part: Part) -> bool {
        !self.off && self.missing.iter().all(|(missing, _)| *missing != part)
    }

    /// What the process has given up.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        Part::ALL.into_iter().filter(|part| self.has(*part))
    }

    /// What the host has not let it give up, and why.
    pub fn missing(&self) -> impl Iterator<Item = (Part, &str)> {
        self.missing.iter().map(|(part, why)| (*part, &why[..]))
    }

    /// How much there is.
    pub fn level(&self) -> Level {
        if self.off {
            Level::Off
        } else if self.missing.is_empty() {
            Level::Full
        } else if self.has(Part::Files)
            && self.has(Part::SystemCalls)
            && self.has(Part::Capabilities)
        {
            Level::Filters
        } else {
            Level::Weak
        }
    }
}

/// The level, and what is missing, the parts with one reason together.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.level())?;
        let mut reasons: Vec<&str> = Vec::new();
        for (_, why) in self.missing() {
            if reasons.contains(&why) {
                continue;
            }
            reasons.push(why);
            let with_it = self.missing().filter(|(_, other)| *other == why);
            let parts: Vec<_> = with_it.map(|(part, _)| part.name()).collect();
            write!(f, "; without {}: {why}", parts.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_are_missing_for_one_reason_are_named_together() {
        let mut report = Report::full();
        assert_eq!((report.level(), report.parts().count()), (Level::Full, 10));
        assert_eq!(report.to_string(), "full");
        report.miss(Part::UserNamespace, "no");
        report.miss(Part::Signals, "old kernel");
        report.miss(Part::Root, "no");
        assert_eq!(
            report.to_string(),
            "filters; without user-namespace, root: no; without signals: old kernel"
        );
        assert!(!report.has(Part::Root) && report.has(Part::Files));
        assert_eq!(report.missing().count() + report.parts().count(), 10);
    }

    #[test]
    fn less_than_landlock_and_filters_is_weak() {
        for part in [Part::Files, Part::SystemCalls, Part::Capabilities] {
            let mut report = Report::full();
            report.miss(part, "no");
            assert_eq!(report.level(), Level::Weak);
        }
        assert_eq!(Report::off().level(), Level::Off);
        assert_eq!(Report::off().parts().count(), 0);
        assert!(Level::Off < Level::Weak && Level::Weak < Level::Filters);
        assert!(Level::Filters < Level::Full);
    }
}
