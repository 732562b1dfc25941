//! The way without root: what an ordinary user may not do, it may in a user namespace of its own. This module decides
//! which way it is, and makes that namespace; the rest asks it.
//!
//! Inside, the user and its group are the only ones there are, under their own numbers. The program is no other user
//! than the jailer, and has no capabilities once it is executed: it is not root in its namespace either.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::error::{JailerError, Result, on};
use crate::sys::{owner_of_namespace, unshare};

const NO_USER_NAMESPACE: &str = "An ordinary user's jail needs a user namespace. What forbids it may be \
     kernel.unprivileged_userns_clone=0 or kernel.apparmor_restrict_unprivileged_userns=1 (sysctl), a chroot, or a \
     container's seccomp profile. Allow it, or start the jailer as root";
const NO_MORE: &str =
    "user.max_user_namespaces (sysctl) allows no more. Raise it, or start the jailer as root";
const NO_KERNEL: &str = "The kernel has no CONFIG_USER_NS. Start the jailer as root";
const NO_NETWORK: &str = "An ordinary user joins a network namespace that it has made itself (unshare --user \
     --map-current-user --net). For others start the jailer as root";
const NO_CGROUP: &str = "An ordinary user makes cgroups in one of version 2 that is delegated to it, when it is \
     started in there, too, below the one that it names: give --cgroup-version 2 --parent-cgroup PATH, or start the \
     jailer as root";

/// By whose rights a jail is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    Root,
    /// An ordinary user's, with the program as the same user.
    Own(Uid, Gid),
}

impl Rights {
    /// Those of this process, if they will do for a program of that user.
    pub(crate) fn of(uid: u32, gid: u32) -> Result<Self> {
        let own = (geteuid(), getegid());
        if own.0.is_root() {
            return Ok(Self::Root);
        }
        if (own.0.as_raw(), own.1.as_raw()) != (uid, gid) {
            return Err(JailerError::NotRoot {
                uid,
                gid,
                own: (own.0.as_raw(), own.1.as_raw()),
            });
        }
        Ok(Self::Own(own.0, own.1))
    }

    /// Whose a jail is while it is made.
    pub(crate) fn maker(self) -> (Uid, Gid) {
        match self {
            Self::Root => (Uid::ROOT, Gid::ROOT),
            Self::Own(uid, gid) => (uid, gid),
        }
    }

    /// An ordinary user first joins the user namespace that the network belongs to: only its own let it.
    pub(crate) fn join_network(self, path: &Path) -> Result<()> {
        const WHAT: &str = "join network namespace: netns:";
        let file = File::open(path).map_err(on("open file", path))?;
        let join = |file: &File, kind| move_into_link_name_space(file.as_fd(), Some(kind));
        let joined = match self {
            Self::Root => Ok(()),
            Self::Own(..) => owner_of_namespace(&file)
                .and_then(|owner| Ok(join(&owner, LinkNameSpaceType::User)?))
                .map_err(on(WHAT, path)),
        };
        let joined =
            joined.and_then(|()| join(&file, LinkNameSpaceType::Network).map_err(on(WHAT, path)));
        self.advise(joined, |errno| match errno {
            // The latter: it is that of the user namespace that this process is in, where it has no rights.
            Errno::PERM | Errno::INVAL => Some(NO_NETWORK),
            _ => None,
        })
    }

    /// Makes the namespace in which the rest is allowed. Root needs none.
    pub(crate) fn take(self) -> Result<()> {
        let Self::Own(uid, gid) = self else {
            return Ok(());
        };
        // Not what they were at first, in the user namespace of a network.
        let (outer_uid, outer_gid) = (geteuid().as_raw(), getegid().as_raw());
        let made = unshare(UnshareFlags::NEWUSER).map_err(|errno| JailerError::Step {
            what: "make a user namespace",
            source: errno.into(),
            cure: "",
        });
        let mapped = made.and_then(|()| {
            // Who is not root may do so for itself once groups are fixed (user_namespaces(7)).
            let lines = [
                ("/proc/self/setgroups", "deny".to_owned()),
                (
                    "/proc/self/uid_map",
                    format!("{} {outer_uid} 1", uid.as_raw()),
                ),
                (
                    "/proc/self/gid_map",
                    format!("{} {outer_gid} 1", gid.as_raw()),
                ),
            ];
            lines.iter().try_for_each(|(path, line)| {
                fs::write(path, line).map_err(on("map the user in", *path))
            })
        });
        self.namespaces(mapped)
    }

    /// Says what may help where a namespace was refused.
    pub(crate) fn namespaces<T>(self, done: Result<T>) -> Result<T> {
        self.advise(done, |errno| match errno {
            Errno::PERM | Errno::ACCESS => Some(NO_USER_NAMESPACE),
            Errno::NOSPC => Some(NO_MORE),
            Errno::INVAL | Errno::NOSYS => Some(NO_KERNEL),
            _ => None,
        })
    }

    /// Says what may help where a cgroup was refused.
    pub(crate) fn cgroups<T>(self, done: Result<T>) -> Result<T> {
        self.advise(done, |errno| match errno {
            Errno::PERM | Errno::ACCESS | Errno::ROFS | Errno::BUSY => Some(NO_CGROUP),
            _ => None,
        })
    }

    fn advise<T>(self, done: Result<T>, cure: fn(Errno) -> Option<&'static str>) -> Result<T> {
        done.map_err(|error| {
            let cure = error.errno().and_then(cure).filter(|_| self != Self::Root);
            match cure {
                Some(cure) => JailerError::Rootless {
                    error: Box::new(error),
                    cure,
                },
                None => error,
            }
        })
    }
}
