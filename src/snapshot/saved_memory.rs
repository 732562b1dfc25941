//! Where the content of a restored machine's RAM comes from.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;

use devices::descriptor;
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use crate::Error;

/// Where the content of a restored machine's RAM comes from. Open files stand for [`SavedMemory::Lazy`].
#[derive(Debug)]
#[non_exhaustive]
pub enum SavedMemory {
    /// The files that were saved with the state, all of
    /// [`Snapshot::memory_files`](crate::Snapshot::memory_files) in their order: a page is read when it
    /// is touched first.
    Lazy(Vec<File>),
    /// The same files, and all of their content is in memory before the guest goes on.
    Prefault(Vec<File>),
    /// Another process, which brings a page when it is touched first. It is told on this socket (docs/snapshot.md), and has
    /// to keep its end open: when it closes that, the VM ends with [`Error::LostMemory`], and
    /// SIGBUS ends a process that touches guest memory nevertheless.
    Uffd(UnixStream),
}

impl SavedMemory {
    /// [`SavedMemory::Uffd`] with an open descriptor of this process, which stays open: a Unix socket for streams that is
    /// connected to the other process.
    ///
    /// # Errors
    /// When it is not open, or no such socket.
    pub fn uffd_on(fd: RawFd) -> Result<Self, Error> {
        let refused = |source: io::Error| {
            Error::Refused {
            field: "memory".into(),
            value: format!("uffd=fd={fd}"),
            source,
            cure: "give the number of a Unix socket for streams that this program is started with, connected to the \
                   handler of page faults"
                .to_owned(),
        }
        };
        let socket = descriptor::duplicate(fd).map_err(refused)?;
        let wrong = |cause: &str| refused(io::Error::other(cause));
        let kind = socket_type(&socket).map_err(|error| refused(error.into()))?;
        let domain = socket_domain(&socket).map_err(|error| refused(error.into()))?;
        if (kind, domain) != (SocketType::STREAM, AddressFamily::UNIX) {
            return Err(wrong("it is no Unix socket for streams"));
        }
        let socket = UnixStream::from(socket);
        socket.peer_addr().map_err(refused)?;
        Ok(Self::Uffd(socket))
    }
}

impl From<Vec<File>> for SavedMemory {
    fn from(files: Vec<File>) -> Self {
        Self::Lazy(files)
    }
}
