//! Joining a cgroup (version 2) that is the user's, with limits.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, fstatfs, openat};
use rustix::io::Errno;

/// A cgroup to join, and what is written to it before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Its folder.
    pub path: PathBuf,
    /// Memory in bytes (memory.max), guest RAM included.
    pub memory: Option<u64>,
    /// Processor time in hundredths of one processor (cpu.max): 150 are one and a half.
    pub cpu_percent: Option<u32>,
    /// Threads and processes (pids.max).
    pub pids: Option<u64>,
}

/// Why a cgroup was not joined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// There is no such folder, or it may not be opened.
    #[error("cannot open the cgroup {}: {source}", path.display())]
    Open {
        /// The folder.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The folder is something else.
    #[error("{} is no cgroup of version 2", path.display())]
    NoCgroup {
        /// The folder.
        path: PathBuf,
    },
    /// A limit, or the process itself, was refused.
    #[error("cannot write {value:?} to {}/{file}: {source}", path.display())]
    Write {
        /// The folder.
        path: PathBuf,
        /// The file in it.
        file: &'static str,
        /// What was to be written.
        value: String,
        /// What the kernel says.
        source: io::Error,
        /// What may help.
        cure: &'static str,
    },
}

impl CgroupError {
    /// What may help.
    pub fn cure(&self) -> &'static str {
        match self {
            Self::Open { .. } => "make it with mkdir, below one that is yours",
            Self::NoCgroup { .. } => {
                "name a folder below /sys/fs/cgroup, or wherever cgroups of version 2 are mounted (`mount -t cgroup2`)"
            }
            Self::Write { cure, .. } => cure,
        }
    }
}

/// CGROUP2_SUPER_MAGIC of include/uapi/linux/magic.h.
const CGROUP2: u64 = 0x6367_7270;
/// The period of cpu.max in microseconds, which is the kernel's own.
const PERIOD_US: u64 = 100_000;
const PROCS: &str = "cgroup.procs";

impl Cgroup {
    /// Sets the limits, then moves the process there with all its threads. Comes before
    /// [`Jail::enter`](crate::Jail::enter), after which there are no files.
    ///
    /// # Errors
    /// When the folder is no cgroup, or the host refuses a limit or the process.
    pub fn join(&self) -> Result<(), CgroupError> {
        let folder = self.open()?;
        let kind = fstatfs(&folder).map(|fs| u64::try_from(fs.f_type).unwrap_or_default());
        if kind != Ok(CGROUP2) {
            return Err(CgroupError::NoCgroup {
                path: self.path.clone(),
            });
        }
        self.join_in(&folder)
    }

    fn open(&self) -> Result<OwnedFd, CgroupError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, &self.path, flags, Mode::empty()).map_err(|errno| CgroupError::Open {
            path: self.path.clone(),
            source: errno.into(),
        })
    }

    /// The limits first: there is no moment without them.
    fn join_in(&self, folder: &OwnedFd) -> Result<(), CgroupError> {
        let percent = |percent: u32| u64::from(percent).saturating_mul(PERIOD_US / 100);
        let limits = [
            ("memory.max", self.memory.map(|bytes| bytes.to_string())),
            (
                "cpu.max",
                self.cpu_percent
                    .map(|part| format!("{} {PERIOD_US}", percent(part))),
            ),
            ("pids.max", self.pids.map(|most| most.to_string())),
        ];
        for (file, value) in limits {
            if let Some(value) = value {
                self.write(folder, file, value)?;
            }
        }
        // 0 is who writes (Documentation/admin-guide/cgroup-v2.rst).
        self.write(folder, PROCS, "0".to_owned())
    }

    fn write(
        &self,
        folder: &OwnedFd,
        file: &'static str,
        value: String,
    ) -> Result<(), CgroupError> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let written = openat(folder, Path::new(file), flags, Mode::empty())
            .and_then(|fd| rustix::io::write(fd, value.as_bytes()));
        written.map(drop).map_err(|errno| CgroupError::Write {
            path: self.path.clone(),
            file,
            value,
            source: errno.into(),
            cure: cure(file, errno),
        })
    }
}

fn cure(file: &str, errno: Errno) -> &'static str {
    match (file == PROCS, errno) {
        (true, Errno::ACCESS | Errno::PERM) => {
            "the cgroup above both this process' own and that one has to be yours: `systemd-run --user --scope \
             --property=Delegate=yes` starts a shell in such a one"
        }
        (true, Errno::BUSY) => {
            "it hands controllers on (cgroup.subtree_control) and has no processes of its own: join one below it"
        }
        (false, Errno::NOENT) => {
            "the controller is off: write `+memory +cpu +pids` to cgroup.subtree_control of the cgroup above it"
        }
        (false, Errno::ACCESS | Errno::PERM) => {
            "limits of a cgroup that was handed to you are not yours to set: make one below it"
        }
        (false, Errno::INVAL | Errno::RANGE) => "the kernel takes no such number here",
        _ => "`man 7 cgroups` tells who may do what",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    fn written(cgroup: &Cgroup) -> Result<(), CgroupError> {
        cgroup.join_in(&cgroup.open()?)
    }

    #[test]
    fn limits_are_written_in_the_kernels_words_and_only_those_that_were_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["memory.max", "cpu.max", "pids.max", PROCS] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        let read = |file| fs::read_to_string(folder.path().join(file)).unwrap();
        let mut cgroup = Cgroup {
            path: folder.path().to_owned(),
            memory: Some(1 << 30),
            ..Cgroup::default()
        };
        written(&cgroup).unwrap();
        let texts = ["memory.max", "cpu.max", "pids.max", PROCS].map(read);
        assert_eq!(texts, ["1073741824", "", "", "0"]);
        cgroup.cpu_percent = Some(150);
        cgroup.pids = Some(64);
        written(&cgroup).unwrap();
        assert_eq!(["cpu.max", "pids.max"].map(read), ["150000 100000", "64"]);
    }

    #[test]
    fn a_process_does_not_join_without_the_limits_that_were_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(PROCS), "").unwrap();
        let cgroup = Cgroup {
            path: folder.path().to_owned(),
            pids: Some(64),
            ..Cgroup::default()
        };
        let error = written(&cgroup).unwrap_err();
        for part in ["pids.max", "\"64\""] {
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(error.cure().contains("cgroup.subtree_control"));
        let procs = fs::read_to_string(folder.path().join(PROCS)).unwrap();
        assert_eq!(procs, "");
    }

    #[test]
    fn a_folder_that_is_no_cgroup_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: PathBuf| Cgroup {
            path,
            ..Cgroup::default()
        };
        let error = at(folder.path().to_owned()).join().unwrap_err();
        assert!(matches!(error, CgroupError::NoCgroup { .. }), "{error}");
        let error = at(folder.path().join("none")).join().unwrap_err();
        assert!(error.cure().contains("mkdir"), "{error}");
        // R4: nor is a link that somebody put into it followed.
        let target = folder.path().join("target");
        fs::write(&target, "as it was").unwrap();
        std::os::unix::fs::symlink(&target, folder.path().join(PROCS)).unwrap();
        let error = written(&at(folder.path().to_owned())).unwrap_err();
        assert!(matches!(error, CgroupError::Write { .. }), "{error}");
        assert_eq!(fs::read_to_string(target).unwrap(), "as it was");
    }
}
