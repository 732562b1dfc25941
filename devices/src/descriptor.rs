//! Descriptors that this process was started with, or that its program has open, by their numbers.
//!
//! A path like `/dev/fd/3` means the open descriptor 3 itself. Opening it by that name, as Linux does, would ask for the
//! file's permissions again, and is not possible for sockets.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

/// The descriptor that a path stands for: `/dev/fd/N` or `/proc/self/fd/N`.
#[must_use]
pub fn of_path(path: &Path) -> Option<RawFd> {
    let text = path.to_str()?;
    let number = text
        .strip_prefix("/dev/fd/")
        .or_else(|| text.strip_prefix("/proc/self/fd/"))?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| number.parse().ok()).flatten()
}

/// A descriptor of our own for what `fd` is open for. It is closed when a program is executed.
///
/// # Errors
/// When it is not open, or there are too many.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(BAD_DESCRIPTOR));
    }
    // SAFETY: the number is only handed to fcntl(2), which refuses one that is not open; -1, the only number that must
    // not be borrowed, was refused.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

/// EBADF, the same number on every architecture of Linux.
const BAD_DESCRIPTOR: i32 = 9;

/// Opens a file by its path, or takes the open descriptor that the path stands for.
///
/// # Errors
/// When it cannot be opened, or the descriptor is not open.
pub fn open(path: &Path, options: &OpenOptions) -> io::Result<File> {
    match of_path(path) {
        Some(fd) => duplicate(fd).map(File::from),
        None => options.open(path),
    }
}

/// An open file that is to be a disk's.
#[derive(Debug)]
pub struct DiskFile {
    /// The file.
    pub file: File,
    /// The same file, opened once more: for direct I/O, where the process cannot open it itself.
    pub again: Option<File>,
}

impl From<File> for DiskFile {
    fn from(file: File) -> Self {
        Self { file, again: None }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn numbers_and_nothing_else_stand_for_descriptors() {
        for (path, fd) in [
            ("/dev/fd/3", Some(3)),
            ("/proc/self/fd/12", Some(12)),
            ("/dev/fd/", None),
            ("/dev/fd/-1", None),
            ("/dev/fd/+1", None),
            ("/dev/fd/3/x", None),
            ("/dev/fd/99999999999", None),
            ("dev/fd/3", None),
            ("/dev/null", None),
        ] {
            assert_eq!(of_path(Path::new(path)), fd, "{path}");
        }
    }

    #[test]
    fn what_is_open_is_taken_as_it_is_open_and_what_is_not_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reading = File::open(file.path()).unwrap();
        let path = format!("/dev/fd/{}", reading.as_raw_fd());
        let taken = open(Path::new(&path), OpenOptions::new().write(true)).unwrap();
        assert!(io::Write::write(&mut &taken, b"x").is_err(), "not reopened");
        for fd in [-1, i32::MAX] {
            assert_eq!(
                duplicate(fd).unwrap_err().raw_os_error(),
                Some(BAD_DESCRIPTOR)
            );
        }
    }
}
