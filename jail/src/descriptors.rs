//! Directories that are open: `openat(fd, "..")` leads from one that was opened outside out of any root.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, fstat, openat, readlinkat};

use crate::error::Refusal;

/// The first directory that is open, with its path; mounts and O_PATH descriptors included, but for `inside`, which leads
/// nowhere else.
pub(crate) fn open_directory(
    inside: Option<BorrowedFd<'_>>,
) -> Result<Option<(i32, PathBuf)>, Refusal> {
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
        let mode = fstat(unsafe { BorrowedFd::borrow_raw(fd) })
            .map_err(refused())?
            .st_mode;
        if FileType::from_raw_mode(mode) == FileType::Directory {
            let target = readlinkat(&own, name.file_name(), Vec::new()).map_err(refused())?;
            return Ok(Some((fd, target.to_string_lossy().into_owned().into())));
        }
    }
    Ok(None)
}
