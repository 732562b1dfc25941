//! What can go wrong. Texts that clients look for are the interface's; all say what was tried and on what.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JailerError {
    #[error("Failed to parse arguments: {0}\nFor more information try --help.")]
    Arguments(String),
    #[error("Invalid instance ID: {0}")]
    Id(String),
    #[error("Invalid {0}: {1}: a number from 0 to 4294967294 is wanted")]
    User(&'static str, String),
    #[error("Failed to canonicalize path {}: {source}", path.display())]
    Canonicalize { path: PathBuf, source: io::Error },
    #[error("{} is not a file", .0.display())]
    NotAFile(PathBuf),
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    #[error("Failed to open {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("Detected hard link at: {}", .0.display())]
    HardLink(PathBuf),
    #[error("Failed to {what} {}: {source}{cure}", path.display())]
    Path {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
        cure: &'static str,
    },
    #[error("Failed to {what}: {source}{cure}")]
    Step {
        what: &'static str,
        source: io::Error,
        cure: &'static str,
    },
    #[error("Invalid --resource-limit {0}: fsize=BYTES or no-file=NUMBER is wanted")]
    Limit(String),
    #[error("Failed to set limit for resource: {name} to {value}: {source}{cure}")]
    SetLimit {
        name: &'static str,
        value: u64,
        source: io::Error,
        cure: &'static str,
    },
    #[error("{0} is an invalid cgroup version specifier: 1 or 2 is wanted")]
    CgroupVersion(String),
    #[error("Invalid format for cgroups: {0}: FILE=VALUE is wanted")]
    CgroupFormat(String),
    #[error("Cgroup invalid file: {0}: a name like cpu.weight is wanted, without folders")]
    CgroupFile(String),
    #[error(
        "Cgroup invalid file: {0}: --cgroup sets limits, and this file holds none; those that begin with `cgroup.` are \
         cgroup.max.depth and cgroup.max.descendants"
    )]
    CgroupNoLimit(String),
    #[error(
        "Parent cgroup path is invalid: {0}: it has to be relative to where cgroups are mounted, without `.` and `..`"
    )]
    CgroupParent(PathBuf),
    #[error("Hierarchy not found: no cgroups of version {0} are mounted; see /proc/mounts")]
    CgroupHierarchy(u8),
    #[error("Controller {0} is unavailable: it is not mounted, or its hierarchy has it not")]
    CgroupController(String),
    #[error("Failed to inherit {file} for the cgroup {}: it is empty in all cgroups above", path.display())]
    CgroupInherit { path: PathBuf, file: String },
    #[error("Failed to write {value:?} to {}: {source}", path.display())]
    CgroupWrite {
        path: PathBuf,
        value: String,
        source: io::Error,
    },
    #[error(
        "Failed to move process to cgroup ({path}): {source}.\nHint: If you intended to create a child cgroup under \
         {path}, pass any --cgroup parameters.",
        path = path.display()
    )]
    CgroupMove { path: PathBuf, source: io::Error },
    #[error(
        "Invalid uid and gid: {uid} and {gid}: only root becomes another user: give --uid {} --gid {}, or start the \
         jailer as root",
        own.0, own.1
    )]
    NotRoot { uid: u32, gid: u32, own: (u32, u32) },
    /// What the kernel does not let an ordinary user do.
    #[error("{error}. {cure}")]
    Rootless {
        error: Box<JailerError>,
        cure: &'static str,
    },
    /// What another process of the jailer has said.
    #[error("{0}")]
    Said(String),
}

impl JailerError {
    /// What the kernel said of a file, a cgroup or a step.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Path { source, .. }
            | Self::Step { source, .. }
            | Self::CgroupWrite { source, .. }
            | Self::CgroupMove { source, .. } => Errno::from_io_error(source),
            _ => None,
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, JailerError>;

/// For `map_err`: what was tried.
pub(crate) fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> JailerError {
    move |error| JailerError::Step {
        what,
        source: error.into(),
        cure: "",
    }
}

/// For `map_err`: what was tried, and on which path.
pub(crate) fn on<E: Into<io::Error>>(
    what: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(E) -> JailerError {
    let path = path.into();
    move |error| JailerError::Path {
        what,
        path,
        source: error.into(),
        cure: "",
    }
}
