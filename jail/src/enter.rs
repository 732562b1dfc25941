//! The order in which a process gives up its rights.

use std::io;
use std::os::fd::{AsFd, RawFd};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Uid, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::ahead::Ahead;
use crate::error::{JailError, Refusal};
use crate::report::{Level, Part, Report};
use crate::root::{self, Folder};
use crate::{capabilities, descriptors, landlock, namespaces, seccomp};

/// How much of a jail there has to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// As much as the host allows.
    #[default]
    Auto,
    /// All of it, or an error.
    Strict,
    /// None.
    Off,
}

/// A user that root becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// The user's number.
    pub uid: u32,
    /// The group's number; there are no others.
    pub gid: u32,
}

/// What the process may have at most, from [`Jail::enter`] on. There are no core dumps in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Open files (RLIMIT_NOFILE); `None`: as before.
    pub open_files: Option<u64>,
    /// Bytes of any file that it writes (RLIMIT_FSIZE); `None`: as before.
    pub file_size: Option<u64>,
}

/// What a process is to give up, and what it keeps.
#[derive(Debug, Clone, Default)]
pub struct Jail {
    sandbox: Sandbox,
    user: Option<User>,
    socket_folders: Vec<PathBuf>,
    limits: Limits,
    /// Why the root stays what it is, if it does.
    keeps_root: Option<String>,
    /// What stays open of what the process was started with, if not all of it.
    kept: Option<Vec<RawFd>>,
}

impl Jail {
    /// Everything but what is open, as far as `sandbox` says.
    pub fn new(sandbox: Sandbox) -> Self {
        Self {
            sandbox,
            ..Self::default()
        }
    }

    /// Root becomes this user, whatever the sandbox is.
    #[must_use]
    pub fn user(self, user: User) -> Self {
        Self {
            user: Some(user),
            ..self
        }
    }

    /// Sockets in this folder can be made, removed and connected to; its files cannot be opened. It stays reachable
    /// under the same path, which has to be absolute and without `..`.
    #[must_use]
    pub fn sockets_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.socket_folders.push(folder.into());
        self
    }

    /// The root stays what it is, for this reason: the process needs something of it. Landlock still holds.
    #[must_use]
    pub fn keeping_root(self, why: impl Into<String>) -> Self {
        Self {
            keeps_root: Some(why.into()),
            ..self
        }
    }

    /// Of what the process was started with, only these descriptors stay open, and the standard streams. It is told by
    /// the flag for close-on-exec, which it has not: the process itself must have opened everything with the flag, as
    /// the standard library does.
    #[must_use]
    pub fn closing_all_but(self, descriptors: impl IntoIterator<Item = RawFd>) -> Self {
        Self {
            kept: Some(descriptors.into_iter().collect()),
            ..self
        }
    }

    /// What the process may have at most.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The process gives up its rights, for good, for itself and for every thread and process it starts from now on.
    /// It has one thread and no directory open, and its working directory is `/` afterwards. `ahead`:
    /// namespaces that were begun before.
    ///
    /// # Errors
    /// When it has more threads, a folder or the user cannot be had, or something is missing from
    /// [`Sandbox::Strict`]. It may have given up part of its rights then, and has to end.
    pub fn enter(&self, ahead: Option<Ahead>) -> Result<Report, JailError> {
        if self.sandbox == Sandbox::Off && self.user.is_none() {
            return Ok(Report::off());
        }
        let threads = namespaces::threads();
        if threads != 1 {
            return Err(JailError::Threads { threads });
        }
        if let Some(user) = self.user {
            become_user(user)?;
        }
        if self.sandbox == Sandbox::Off {
            return Ok(Report::off());
        }
        let report = self.give_up(ahead)?;
        if self.sandbox == Sandbox::Strict && report.level() < Level::Full {
            return Err(JailError::Incomplete(report));
        }
        Ok(report)
    }

    /// First what needs /proc and the old root, then the new one, then what forbids all that.
    fn give_up(&self, ahead: Option<Ahead>) -> Result<Report, JailError> {
        let mut report = Report::full();
        // Which has ended then, and what it had open is closed.
        let made = ahead.and_then(Ahead::made);
        let root = made.as_ref().and_then(|made| made.root.as_ref());
        let open = descriptors::close_inherited(self.kept.as_deref(), root.map(AsFd::as_fd));
        if self.user.is_some() {
            // /proc/self/uid_map belongs to root otherwise (proc(5), /proc/pid).
            let _ = set_dumpable_behavior(DumpableBehavior::Dumpable);
        }
        if let Some(why) = &self.keeps_root {
            report.miss(Part::Root, why);
        }
        // Those are of the user that this process was; and who joins a namespace of mounts is at its root, whose
        // relative paths lead elsewhere.
        let made = made.filter(|_| self.user.is_none() && self.keeps_root.is_none());
        let joined = made.filter(|made| made.join(&mut report));
        if joined.is_none() {
            namespaces::enter(&mut report);
        }
        let folders = self.folders(&mut report)?;
        if report.has(Part::Root) {
            report.note(
                Part::Root,
                root::enter(&folders, joined.and_then(|made| made.root)),
            );
            match open {
                Ok(None) => {}
                Ok(Some((fd, path))) => {
                    let path = path.display();
                    let why =
                        format!("descriptor {fd} is the open folder {path}, a way out of any root");
                    report.miss(Part::Root, why);
                }
                Err(refusal) => report.miss(Part::Root, refusal),
            }
        }
        report.note(Part::Limits, self.limits.set());
        report.note(Part::Capabilities, capabilities::drop_all());
        landlock::enter(&folders, &mut report);
        report.note(Part::SystemCalls, seccomp::available());
        if self.user.is_some() {
            // It has open what that user may not open: its other processes do not get it by ptrace(2).
            let refused = set_dumpable_behavior(DumpableBehavior::NotDumpable);
            report.note(
                Part::Capabilities,
                refused.map_err(Refusal::of("keep tracers out")),
            );
        }
        Ok(report)
    }
}

impl Jail {
    /// Opens the folders that are kept. Without one that cannot be bound, the root stays what it is.
    fn folders(&self, report: &mut Report) -> Result<Vec<Folder>, JailError> {
        let open = |bound| {
            let open = |path: &PathBuf| {
                Folder::open(path, bound).map_err(|refusal| JailError::Folder {
                    path: path.clone(),
                    refusal,
                })
            };
            self.socket_folders.iter().map(open).collect()
        };
        if !report.has(Part::Root) {
            return open(false);
        }
        open(true).or_else(|error| {
            if self.sandbox == Sandbox::Strict {
                return Err(error);
            }
            let folders = open(false)?;
            report.miss(Part::Root, error);
            Ok(folders)
        })
    }
}

impl Limits {
    fn set(self) -> Result<(), Refusal> {
        let limits = [
            (Resource::Core, Some(0)),
            (Resource::Nofile, self.open_files),
            (Resource::Fsize, self.file_size),
        ];
        for (resource, most) in limits {
            let Some(most) = most else {
                continue;
            };
            // Nobody may raise what is lower already.
            let least = getrlimit(resource)
                .maximum
                .map_or(most, |now| now.min(most));
            let limit = Rlimit {
                current: Some(least),
                maximum: Some(least),
            };
            setrlimit(resource, limit).map_err(Refusal::of("set the limits of the process"))?;
        }
        Ok(())
    }
}

/// Threads that are started later are this user's, too.
fn become_user(User { uid, gid }: User) -> Result<(), JailError> {
    let steps = || -> rustix::io::Result<()> {
        if [uid, gid].contains(&u32::MAX) {
            // It leaves what there is as it is (setresuid(2)).
            return Err(Errno::INVAL);
        }
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)
    };
    steps().map_err(|errno| JailError::User {
        uid,
        gid,
        source: io::Error::from(errno),
    })
}
