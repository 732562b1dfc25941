//! The socket files of the host: the device's own, and those that the guest connects to.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

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
            VsockError::TooLong | VsockError::Host(_) => io::ErrorKind::InvalidInput,
        };
        match error {
            VsockError::Host(error) => error,
            error => Self::new(kind, error),
        }
    }
}

/// Connects without waiting: a program that has too many callers already is an error.
pub(super) fn connect_to(path: &[u8]) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// Finds out whether a socket could be made there, without making it.
pub(super) fn check(path: &Path) -> Result<(), VsockError> {
    is_stale(path)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let writable = Access::WRITE_OK | Access::EXEC_OK;
    access(folder.unwrap_or(Path::new(".")), writable).map_err(io::Error::from)?;
    Ok(())
}

/// Whether there is a socket that nobody listens on any more; an error, if there is anything else.
fn is_stale(path: &Path) -> Result<bool, VsockError> {
    if path.as_os_str().len() > LONGEST {
        return Err(VsockError::TooLong);
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(VsockError::NoSocket),
        Ok(_) => match connect_to(path.as_os_str().as_encoded_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
            // Its queue of callers is full.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(VsockError::InUse),
            Err(error) => Err(error.into()),
            Ok(_) => Err(VsockError::InUse),
        },
        Err(_) => Ok(false),
    }
}

/// The device's socket file, which goes with the device.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: UnixListener,
    pub(super) path: PathBuf,
    /// Device and number of the file.
    file: (u64, u64),
}

impl Listener {
    /// Takes the place of a socket that nobody listens on any more, and of nothing else.
    pub(super) fn bind(path: &Path) -> Result<Self, VsockError> {
        if is_stale(path)? {
            fs::remove_file(path)?;
        }
        let socket = UnixListener::bind(path)?;
        socket.set_nonblocking(true)?;
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            file: (metadata.dev(), metadata.ino()),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Not one that somebody else has made since.
        if fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.file)
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}
