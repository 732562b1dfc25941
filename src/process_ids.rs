//! Numbers of processes that may be 0, for those outside of this process's namespace of them: rustix' types have no 0.

#[cfg(feature = "control")]
use std::{io, os::fd::AsRawFd, os::unix::net::UnixStream};

/// The process group of this process.
pub(crate) fn own_group() -> libc::pid_t {
    // SAFETY: it has no arguments.
    unsafe { libc::getpgrp() }
}

/// The process that connected, as the kernel noted it then.
#[cfg(feature = "control")]
pub(crate) fn peer(stream: &UnixStream) -> io::Result<libc::ucred> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let length = libc::socklen_t::try_from(size_of_val(&peer));
    let mut length = length.map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, and that is what `peer` has.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(peer),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(all(test, feature = "control"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_of_a_pair_is_this_process() {
        let (stream, _other) = UnixStream::pair().unwrap();
        let peer = peer(&stream).unwrap();
        assert_eq!(peer.pid.cast_unsigned(), std::process::id());
        // SAFETY: it has no arguments.
        assert_eq!(peer.uid, unsafe { libc::getuid() });
    }
}
