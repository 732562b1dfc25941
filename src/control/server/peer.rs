//! Who is at the other end of a Unix socket.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// The process that connected, as the kernel noted it then. `pid` is 0 if that process is in no
/// namespace of processes that this one can see, which rustix' type has no value for.
pub(super) fn peer(stream: &UnixStream) -> io::Result<libc::ucred> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
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

#[cfg(test)]
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
