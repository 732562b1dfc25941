//! What is open: descriptors that the process was started with and nobody named, and directories, from which
//! `openat(fd, "..")` leads out of any root.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, fstat, openat, readlinkat};
use rustix::io::{FdFlags, fcntl_getfd};

use crate::error::Refusal;

/// The last of the standard streams.
const STANDARD: RawFd = 2;

/// Closes what the process was started with, but for the standard streams and `kept`, if that is said: it has no
/// close-on-exec flag. Gives the first directory that is still open, with its path; mounts
/// and O_PATH descriptors included, but for `inside`, which leads nowhere else.
pub(crate) fn close_inherited(
    kept: Option<&[RawFd]>,
    inside: Option<BorrowedFd<'_>>,
) -> Result<Option<(RawFd, PathBuf)>, Refusal> {
    let refused = || Refusal::of("see which descriptors are open, without /proc");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = openat(CWD, "/proc/self/fd", flags, Mode::empty()).map_err(refused())?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&own, &mut buffer);
    while let Some(entry) = entries.next() {
        let name = entry.map_err(refused())?;
        let Some(fd) = name.file_name().to_str().ok().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if fd == own.as_raw_fd() || inside.is_some_and(|inside| inside.as_raw_fd() == fd) {
            continue;
        }
        // SAFETY: the kernel has just said that it is open, and it is asked no more than what it is. Through its link in
        // /proc that would take ten times as long.
        let open = unsafe { BorrowedFd::borrow_raw(fd) };
        let may_close = kept.is_some_and(|kept| fd > STANDARD && !kept.contains(&fd));
        if may_close
            && !fcntl_getfd(open)
                .map_err(refused())?
                .contains(FdFlags::CLOEXEC)
        {
            // SAFETY: nothing of this program has opened it, as whoever wants this has said, so nothing owns it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            continue;
        }
        let mode = fstat(open).map_err(refused())?.st_mode;
        if FileType::from_raw_mode(mode) == FileType::Directory {
            let target = readlinkat(&own, name.file_name(), Vec::new()).map_err(refused())?;
            return Ok(Some((fd, target.to_string_lossy().into_owned().into())));
        }
    }
    Ok(None)
}
