//! The socket files of the host: the device's own, and those that the guest connects to.

use std::io;
use std::path::Path;

use crate::socket::{Clients, SocketError, SocketFile};

pub(super) use crate::socket::connect_to;

/// The longest path: a socket's address has 108 bytes (unix(7)), one of them the end, and the
/// guest's side connects to this path with `_4294967295` behind it.
const LONGEST: usize = 108 - 1 - 11;

/// Why there are no sockets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VsockError {
    /// Another program listens there.
    #[error("another program listens there")]
    InUse,
    /// A file of another kind has that name.
    #[error("there is a file of that name which is no socket")]
    NoSocket,
    /// An open descriptor is no such socket.
    #[error("the descriptor is no Unix stream socket that listens")]
    NotListening,
    /// No room for `_PORT` behind it.
    #[error("the path has more than {LONGEST} bytes, with which a port would not fit behind it")]
    TooLong,
    /// The host refused it.
    #[error(transparent)]
    Host(#[from] io::Error),
}

/// With the kind that the host gave, or would give.
impl From<VsockError> for io::Error {
    fn from(error: VsockError) -> Self {
        let kind = match &error {
            VsockError::InUse => io::ErrorKind::AddrInUse,
            VsockError::NoSocket => io::ErrorKind::AlreadyExists,
            VsockError::TooLong | VsockError::NotListening | VsockError::Host(_) => {
                io::ErrorKind::InvalidInput
            }
        };
        match error {
            VsockError::Host(error) => error,
            error => Self::new(kind, error),
        }
    }
}

impl From<SocketError> for VsockError {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::InUse => Self::InUse,
            SocketError::NoSocket => Self::NoSocket,
            SocketError::NotListening => Self::NotListening,
            SocketError::TooLong(_) => Self::TooLong,
            SocketError::Host(error) => Self::Host(error),
        }
    }
}

/// Finds out whether a socket could be made there, without making it.
pub(super) fn check(path: &Path) -> Result<(), VsockError> {
    SocketFile::check(path, LONGEST)?;
    Ok(())
}

/// The device's socket file, which goes with the device.
pub(super) fn bind(path: &Path) -> Result<SocketFile, VsockError> {
    Ok(SocketFile::bind(path, LONGEST, Clients::Umask)?)
}
