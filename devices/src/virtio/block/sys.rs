//! System calls on disks that no crate wraps: locks of open file descriptions (fcntl_locking(2)), and whether
//! a block device is read-only.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// include/uapi/linux/fs.h
const BLKROGET: libc::Ioctl = 0x125e;

/// A byte's state for somebody who wants to lock it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Byte {
    Free,
    /// Another open file description, or a process, has a lock on it.
    Locked,
}

fn request(byte: i64, kind: libc::c_int) -> io::Result<libc::flock> {
    // SAFETY: zeros are a flock.
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    request.l_type = kind.try_into().map_err(io::Error::other)?;
    request.l_whence = libc::SEEK_SET.try_into().map_err(io::Error::other)?;
    request.l_start = byte;
    request.l_len = 1;
    Ok(request)
}

fn call(file: &File, what: libc::c_int, request: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the kernel reads and writes a flock.
    match unsafe { libc::fcntl(file.as_raw_fd(), what, &raw mut *request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes a shared lock on a byte, or gives it up.
pub(super) fn share(file: &File, byte: i64, on: bool) -> io::Result<()> {
    let kind = if on { libc::F_RDLCK } else { libc::F_UNLCK };
    call(file, libc::F_OFD_SETLK, &mut request(byte, kind)?)
}

/// Whether anybody else has a lock on a byte.
pub(super) fn look(file: &File, byte: i64) -> io::Result<Byte> {
    let mut request = request(byte, libc::F_WRLCK)?;
    call(file, libc::F_OFD_GETLK, &mut request)?;
    if libc::c_int::from(request.l_type) == libc::F_UNLCK {
        Ok(Byte::Free)
    } else {
        Ok(Byte::Locked)
    }
}

/// Whether a block device refuses writes.
pub(super) fn is_read_only_device(file: &File) -> bool {
    let mut read_only: libc::c_int = 0;
    // SAFETY: the kernel writes an int.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKROGET, &raw mut read_only) };
    result == 0 && read_only != 0
}
