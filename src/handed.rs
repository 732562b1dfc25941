//! What a program opens for a machine that another process runs, and hands over.

#[cfg(feature = "virtio-vsock")]
use std::os::fd::{AsFd, BorrowedFd};
use std::os::fd::{OwnedFd, RawFd};
#[cfg(feature = "virtio-vsock")]
use std::path::Path;

use devices::descriptor::duplicate;
#[cfg(feature = "virtio-vsock")]
use devices::socket::SocketFile;

use crate::Error;

/// A socket that was made for the vsock device of a machine of another process. Dropping it takes it away.
#[cfg(feature = "virtio-vsock")]
#[derive(Debug)]
pub struct MadeSocket(SocketFile);

#[cfg(feature = "virtio-vsock")]
impl MadeSocket {
    /// Makes the socket. One that a program which is gone left behind is replaced.
    ///
    /// # Errors
    /// When there is something else, or a program that listens, or it cannot be made.
    pub fn vsock(path: &Path) -> Result<Self, Error> {
        let made = devices::virtio::Vsock::bind(path);
        made.map(Self).map_err(|source| Error::Refused {
            field: "vsock".into(),
            value: path.display().to_string(),
            source: source.into(),
            cure: "name a socket that does not exist yet, with a short path, in a folder that can be written"
                .to_owned(),
        })
    }

    /// Leaves it to the process that was given its descriptor.
    pub fn leave(self) {
        self.0.leave();
    }
}

#[cfg(feature = "virtio-vsock")]
impl AsFd for MadeSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.listener().as_fd()
    }
}

/// Another descriptor for what this process has open under a number, which a value of `field` names.
///
/// # Errors
/// When it is not open.
pub fn own_descriptor(field: &'static str, fd: RawFd) -> Result<OwnedFd, Error> {
    duplicate(fd).map_err(|source| Error::Refused {
        field: field.into(),
        value: format!("fd={fd}"),
        source,
        cure: "name a descriptor that this program is started with".to_owned(),
    })
}
