//! What keeps a process from going on.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::report::Report;

/// Why [`Jail::enter`](crate::Jail::enter) failed. The process has given up some of its rights then, and has to end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JailError {
    /// Rights are given up by a thread, for itself and for those that it starts: it has to be the only one.
    #[error("there are {threads} threads where one is to give up rights for all")]
    Threads {
        /// How many there are.
        threads: usize,
    },
    /// A folder that the process needs inside.
    #[error("the folder {}, which is needed inside the sandbox: {refusal}", path.display())]
    Folder {
        /// The folder, as it was named.
        path: PathBuf,
        /// What the host refused.
        refusal: Refusal,
    },
    /// The user that the process was to become.
    #[error("cannot become user {uid} with group {gid}")]
    User {
        /// The user's number.
        uid: u32,
        /// The group's number.
        gid: u32,
        /// What the kernel says.
        source: io::Error,
    },
    /// [`Sandbox::Strict`](crate::Sandbox::Strict), and this host does not have everything.
    #[error("the sandbox is incomplete: {0}")]
    Incomplete(Report),
}

/// A step that the host refused.
#[derive(Debug)]
pub struct Refusal {
    /// What was tried.
    step: &'static str,
    /// What the kernel says.
    error: io::Error,
    /// What may help, where that is known.
    cure: Option<&'static str>,
}

impl Refusal {
    /// For `map_err`.
    pub(crate) fn of<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| {
            let error = error.into();
            let is_full = [Errno::MFILE, Errno::NFILE]
                .iter()
                .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
            Self {
                step,
                error,
                cure: is_full.then_some("raise the limit of open files, ulimit -n"),
            }
        }
    }

    pub(crate) fn with_cure(self, cure: Option<&'static str>) -> Self {
        Self { cure, ..self }
    }

    /// What the kernel says.
    pub fn error(&self) -> &io::Error {
        &self.error
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.step, self.error)?;
        match self.cure {
            Some(cure) => write!(f, " ({cure})"),
            None => Ok(()),
        }
    }
}
