//! The socket files of the host: the device's own, and those that the guest connects to.

use std::path::Path;

use crate::socket::{Clients, SocketError, SocketFile};

pub(super) use crate::socket::connect_to;

/// The longest path: a socket's address has 108 bytes (unix(7)), one of them the end, and the
/// guest's side connects to this path with `_4294967295` behind it.
const LONGEST: usize = 108 - 1 - 11;

/// Finds out whether a socket could be made there, without making it.
pub(super) fn check(path: &Path) -> Result<(), SocketError> {
    SocketFile::check(path, LONGEST).map(|_| ())
}

/// The device's socket file, which goes with the device.
pub(super) fn bind(path: &Path) -> Result<SocketFile, SocketError> {
    SocketFile::bind(path, LONGEST, Clients::Umask)
}
