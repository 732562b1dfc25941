//! Locks on a disk: one writer, or any number of readers.
//!
//! There are two kinds. `flock` is what disks of this program and tools such as udev take. Bytes of the file
//! are what QEMU and its tools take (`block/file-posix.c`, `include/block/block-common.h`): byte 100 + n says
//! that a permission is used, byte 200 + n that nobody else may use it. All are shared locks of open
//! file descriptions; who begins looks whether somebody else's contradict.
//!
//! Disks without locks keep nobody from anything. Those that are written mark one byte more, which nobody but their like
//! looks at, to be told of each other.

use std::fs::File;
use std::io;

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};

use super::sys::{self, Byte};
use crate::config::BlkConfig;

/// The byte of the first permission that is used, and of the first that is not shared.
const USED: i64 = 100;
const NOT_SHARED: i64 = 200;
/// Permissions, by their bits: to read what does not change meanwhile, to write, to change the size.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
/// What those mark that write without locks.
const MARK: i64 = 300;
/// What nobody else may do with a disk, whether it is written or read.
const EXCLUDED: [i64; 2] = [WRITE, RESIZE];

/// What a disk is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl Access {
    pub(super) fn of(config: &BlkConfig) -> Self {
        if config.read_only {
            Self::Read
        } else {
            Self::Write
        }
    }

    fn permissions(self) -> &'static [i64] {
        match self {
            Self::Read => &[CONSISTENT_READ],
            // The last sector may have to be completed.
            Self::Write => &[CONSISTENT_READ, WRITE, RESIZE],
        }
    }

    fn bytes(self) -> impl Iterator<Item = i64> {
        let used = self
            .permissions()
            .iter()
            .map(|permission| USED + permission);
        used.chain(EXCLUDED.iter().map(|permission| NOT_SHARED + permission))
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Locked,
    /// The file system, or the kernel, has no locks of one kind: the disk is used without.
    Unknown,
    /// Somebody else uses the disk in a way that contradicts. Nothing is locked.
    Refused,
}

/// Locks a disk's file for this access, at once or not at all.
pub(super) fn try_lock(file: &File, access: Access) -> io::Result<Outcome> {
    let whole = match lock_whole(file, access)? {
        Outcome::Refused => return Ok(Outcome::Refused),
        whole => whole,
    };
    match lock_bytes(file, access)? {
        Outcome::Refused => {
            unlock(file, access);
            Ok(Outcome::Refused)
        }
        Outcome::Locked => Ok(whole),
        Outcome::Unknown => Ok(Outcome::Unknown),
    }
}

/// Takes no lock. Says whether somebody else writes to the file.
pub(super) fn mark(file: &File, access: Access) -> io::Result<bool> {
    let is_locked = look(file, Access::Read)? == Outcome::Refused;
    // Where there are no such locks, nobody is seen.
    let is_marked = sys::look(file, MARK).is_ok_and(|byte| byte == Byte::Locked);
    if access == Access::Write {
        let _ = sys::share(file, MARK, true);
    }
    Ok(is_locked || is_marked)
}

/// What [`try_lock`] would say. Bytes are only looked at; the whole file, which cannot be, is locked and let go:
/// who wants it just then waits longer than that takes.
pub(super) fn look(file: &File, access: Access) -> io::Result<Outcome> {
    let whole = lock_whole(file, access)?;
    if whole == Outcome::Locked {
        let _ = flock(file, FlockOperation::Unlock);
    }
    match whole {
        Outcome::Refused => Ok(Outcome::Refused),
        whole => match are_bytes_refused(file, access) {
            Ok(true) => Ok(Outcome::Refused),
            Ok(false) => Ok(whole),
            Err(_) => Ok(Outcome::Unknown),
        },
    }
}

fn lock_whole(file: &File, access: Access) -> io::Result<Outcome> {
    let operation = match access {
        Access::Read => FlockOperation::NonBlockingLockShared,
        Access::Write => FlockOperation::NonBlockingLockExclusive,
    };
    match retry_on_intr(|| flock(file, operation)) {
        Ok(()) => Ok(Outcome::Locked),
        Err(Errno::WOULDBLOCK) => Ok(Outcome::Refused),
        Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(Outcome::Unknown),
        Err(error) => Err(error.into()),
    }
}

/// Gives up what [`try_lock`] took.
pub(super) fn unlock(file: &File, access: Access) {
    for byte in access.bytes() {
        let _ = sys::share(file, byte, false);
    }
    let _ = flock(file, FlockOperation::Unlock);
}

fn lock_bytes(file: &File, access: Access) -> io::Result<Outcome> {
    // First taken, then looked: of two that begin at once, one at least sees the other.
    for byte in access.bytes() {
        if let Err(error) = sys::share(file, byte, true) {
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EACCES) => Ok(Outcome::Refused),
                // Before Linux 3.15, or on a file system without.
                Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS) => {
                    Ok(Outcome::Unknown)
                }
                _ => Err(error),
            };
        }
    }
    Ok(match are_bytes_refused(file, access)? {
        true => Outcome::Refused,
        false => Outcome::Locked,
    })
}

/// Whether somebody else has bytes that contradict.
fn are_bytes_refused(file: &File, access: Access) -> io::Result<bool> {
    let used_by_others = EXCLUDED.iter().map(|permission| USED + permission);
    let refused_by_others = access.permissions().iter();
    let refused_by_others = refused_by_others.map(|permission| NOT_SHARED + permission);
    for byte in used_by_others.chain(refused_by_others) {
        if sys::look(file, byte)? == Byte::Locked {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
