//! What a user says about the sandbox: how much of one there has to be, as which user the VM runs, in which cgroup.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use serde::{Deserialize, Deserializer, Serialize};
use vmm_reference::{Error, FirstOption, MemorySize, OptionError, split_options, with_text};

use super::values;

/// Whether the process has entered its sandbox.
static ENTERED: AtomicBool = AtomicBool::new(false);

pub(super) fn note_entered() {
    ENTERED.store(true, Ordering::Relaxed);
}

/// Whether nothing can be opened any more.
pub(super) fn is_entered() -> bool {
    ENTERED.load(Ordering::Relaxed)
}

/// How much of a sandbox there has to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    /// As much as the host allows.
    #[default]
    Auto,
    /// All of it.
    Strict,
    /// None.
    Off,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Strict => "strict",
            Self::Off => "off",
        })
    }
}

/// What is said of the sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(super) struct SandboxArgs {
    /// What the VM gives up before its guest runs (docs/security.md): as much as this host allows, all of it or an
    /// error, or nothing [default: auto]
    #[arg(long, value_name = "auto|strict|off", value_parser = values::word::<Mode>(), hide_possible_values = true)]
    pub(super) sandbox: Option<Mode>,
    /// Joins a cgroup (version 2) that is yours, PATH or path=PATH[,memory=SIZE][,cpu=PERCENT][,pids=N], and sets
    /// these limits of it; 150 percent are one processor and a half
    #[arg(long, value_name = "CGROUP", value_parser = values::text::<CgroupConfig>())]
    pub(super) cgroup: Option<CgroupConfig>,
    /// Becomes this user once everything is open; for root. Needs --gid
    #[arg(long, value_name = "NUMBER", value_parser = values::id())]
    pub(super) uid: Option<u32>,
    /// Becomes this group, with no others
    #[arg(long, value_name = "NUMBER", value_parser = values::id())]
    pub(super) gid: Option<u32>,
}

impl SandboxArgs {
    /// These, and where they say nothing, what `below` says.
    pub(super) fn over(self, below: Self) -> Self {
        Self {
            sandbox: self.sandbox.or(below.sandbox),
            cgroup: self.cgroup.or(below.cgroup),
            uid: self.uid.or(below.uid),
            gid: self.gid.or(below.gid),
        }
    }

    pub(super) fn mode(&self) -> Mode {
        self.sandbox.unwrap_or_default()
    }

    /// The user that the process becomes.
    ///
    /// # Errors
    /// When half of it is missing, or a number stands for nobody.
    pub(super) fn user(&self) -> Result<Option<jail::User>, Error> {
        let half = |field: &'static str, value: u32, other| Error::Config {
            field: field.into(),
            value: value.to_string(),
            cause: format!("a user and a group belong together, and {other} is not said"),
            cure: format!("give {other} too"),
        };
        for (field, value) in [("uid", self.uid), ("gid", self.gid)] {
            if value == Some(u32::MAX) {
                return Err(Error::Config {
                    field: field.into(),
                    value: u32::MAX.to_string(),
                    cause: "it stands for no user and no group".to_owned(),
                    cure: "give the number of the one that the VM is to run as".to_owned(),
                });
            }
        }
        match (self.uid, self.gid) {
            (Some(uid), Some(gid)) => Ok(Some(jail::User { uid, gid })),
            (None, None) => Ok(None),
            (Some(uid), None) => Err(half("uid", uid, "gid")),
            (None, Some(gid)) => Err(half("gid", gid, "uid")),
        }
    }
}

/// A cgroup and its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CgroupConfig {
    pub(super) path: PathBuf,
    memory: Option<MemorySize>,
    cpu_percent: Option<u32>,
    pids: Option<u64>,
}

impl CgroupConfig {
    const OPTIONS: &'static [&'static str] = &["path=", "memory=", "cpu=", "pids="];
    const FORMS: &'static str = "PATH or path=PATH[,memory=SIZE][,cpu=PERCENT][,pids=N]";

    pub(super) fn join(&self) -> Result<(), Error> {
        let cgroup = jail::Cgroup {
            path: self.path.clone(),
            memory: self.memory.map(MemorySize::bytes),
            cpu_percent: self.cpu_percent,
            pids: self.pids,
        };
        cgroup.join().map_err(|error| Error::Config {
            field: "cgroup".into(),
            value: self.to_string(),
            cure: error.cure().to_owned(),
            cause: error.to_string(),
        })
    }
}

impl FromStr for CgroupConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut config = Self {
            path: PathBuf::new(),
            memory: None,
            cpu_percent: None,
            pids: None,
        };
        for (key, value) in split_options(text, FirstOption::Path("path"), Self::OPTIONS)? {
            let wrong = |why: String| OptionError::Value(key, value.to_string(), why);
            let positive = || {
                let number = value.parse().ok().filter(|number: &u32| *number > 0);
                number.ok_or_else(|| wrong("it is a number from 1 on".to_owned()))
            };
            match key {
                "memory" => {
                    let size = value.parse::<MemorySize>();
                    let size = size.map_err(|error| wrong(error.to_string()))?;
                    if size.bytes() == 0 {
                        return Err(wrong("nothing runs without memory".to_owned()));
                    }
                    config.memory = Some(size);
                }
                "cpu" => config.cpu_percent = Some(positive()?),
                "pids" => config.pids = Some(positive()?.into()),
                _ => config.path = PathBuf::from(&*value),
            }
        }
        if config.path.as_os_str().is_empty() {
            return Err(OptionError::Missing("path", Self::FORMS));
        }
        Ok(config)
    }
}

impl fmt::Display for CgroupConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display().to_string();
        if path.contains([',', '"']) {
            write!(f, "path=\"{}\"", path.replace('"', "\"\""))?;
        } else {
            write!(f, "path={path}")?;
        }
        if let Some(memory) = self.memory {
            write!(f, ",memory={memory}")?;
        }
        if let Some(percent) = self.cpu_percent {
            write!(f, ",cpu={percent}")?;
        }
        match self.pids {
            Some(pids) => write!(f, ",pids={pids}"),
            None => Ok(()),
        }
    }
}

impl<'de> Deserialize<'de> for CgroupConfig {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        with_text(from, Self::FORMS)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_a_path_with_limits_and_prints_as_it_was_given() {
        let text = "path=/sys/fs/cgroup/vm,memory=512M,cpu=150,pids=64";
        let config: CgroupConfig = text.parse().unwrap();
        assert_eq!(config.to_string(), text);
        assert_eq!(config.memory.unwrap().bytes(), 512 << 20);
        assert_eq!((config.cpu_percent, config.pids), (Some(150), Some(64)));
        let quoted = "path=\"/a,b\",pids=64";
        let with_comma: CgroupConfig = quoted.parse().unwrap();
        assert_eq!(with_comma.path.to_str(), Some("/a,b"));
        assert_eq!(with_comma.to_string(), quoted);
        let plain: CgroupConfig = "/a/b".parse().unwrap();
        assert_eq!(plain.to_string(), "path=/a/b");
        for (text, said) in [
            ("", "no path; write PATH or"),
            ("path=", "it is empty"),
            ("/a,memory=0", "memory=\"0\": "),
            ("/a,cpu=0", "cpu=\"0\": it is a number from 1 on"),
            ("/a,pids=-1", "pids=\"-1\": it is a number from 1 on"),
            ("/a,memory=much", "memory=\"much\": "),
            ("/a,swap=1", "unknown option \"swap\""),
        ] {
            let error = text.parse::<CgroupConfig>().unwrap_err();
            let error = error.to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_user_without_a_group_is_refused() {
        let half = SandboxArgs {
            uid: Some(7),
            ..SandboxArgs::default()
        };
        let error = half.user().unwrap_err();
        assert_eq!(
            error.to_string(),
            "uid=7: a user and a group belong together, and gid is not said"
        );
        let whole = SandboxArgs {
            gid: Some(8),
            ..half
        };
        assert_eq!(whole.user().unwrap(), Some(jail::User { uid: 7, gid: 8 }));
    }
}
