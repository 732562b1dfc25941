//! Calls that are unsafe in themselves. The jailer has one thread throughout.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use rustix::process::Pid;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Closes everything but standard input and outputs.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: it runs first, when nothing in here has a descriptor of its own.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// New namespaces for this process, or for its children.
pub(crate) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: what makes it unsafe is that a thread may have descriptors of its own, which no caller here asks for.
    unsafe { unshare_unsafe(flags) }
}

/// The user namespace that a namespace belongs to (NS_GET_USERNS, ioctl_ns(2)).
pub(crate) fn owner_of_namespace(namespace: &File) -> io::Result<File> {
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    // The type of the number differs between C libraries.
    // SAFETY: this one takes no argument, and gives a descriptor.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS as _) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Whether this process is the first of its session.
pub(crate) fn leads_its_session() -> bool {
    // SAFETY: both only read numbers. rustix' takes no session of 0, which is one whose leader is
    // outside of this namespace of processes.
    unsafe { libc::getsid(0) == libc::getpid() }
}

/// Who a process is after fork(2).
#[derive(Debug)]
pub(crate) enum Forked {
    Parent(Pid),
    Child,
}

pub(crate) fn fork() -> io::Result<Forked> {
    // SAFETY: there are no other threads, whose locks a child could find held.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => Ok(Forked::Child),
        // rustix' type takes no negative one.
        -1 => Err(io::Error::last_os_error()),
        pid => Pid::from_raw(pid)
            .map(Forked::Parent)
            .ok_or_else(io::Error::last_os_error),
    }
}
