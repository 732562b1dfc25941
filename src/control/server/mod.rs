//! The control socket: commands and events of a machine for other processes (docs/control.md).
//!
//! The guest and the machine's own thread take no notice of a client that is slow, silent or hostile. What keeps the
//! clients (`serving.rs`, `connection.rs`) knows nothing of what they say and is there for other protocols, too.

mod connection;
mod dialogue;
mod protocol;
#[cfg(feature = "schema")]
pub(crate) mod schema;
mod service;
mod serving;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use devices::socket::{Clients, LONGEST, SocketError, SocketFile};

use self::dialogue::Dialogue;
use crate::Error;
use crate::confinement::ThreadRole;
use crate::control::handle::VmHandle;
use crate::wake::Wake;

pub use self::connection::MAX_DESCRIPTORS;
pub use self::protocol::PROTOCOL;
pub use self::service::{ClientLimits, Input, Next, Service};
pub use self::serving::{ParkedServer, SocketServer};

/// A socket in the file system on which nobody is served yet.
#[derive(Debug)]
pub struct ControlSocket(SocketFile);

/// What is at the path of a control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// Nothing, or a socket whose process is gone.
    Free,
    /// A socket on which another program listens.
    InUse,
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.listener().as_fd()
    }
}

fn refused(path: &Path, error: SocketError) -> Error {
    let cure = match &error {
        SocketError::InUse => "name another path, or end the other VM first",
        SocketError::NoSocket => "name a path where nothing is",
        SocketError::TooLong(_) => "name a shorter path, or one that begins at the current folder",
        _ => "name a path in a folder that is there and can be written",
    };
    Error::Refused {
        field: "control".into(),
        value: path.display().to_string(),
        source: error.into(),
        cure: cure.to_owned(),
    }
}

impl ControlSocket {
    /// Makes the socket, for its owner only (mode 0600). One that a VMM which is gone left behind is replaced.
    ///
    /// # Errors
    /// When there is something else, or a VMM that is not gone, or the socket cannot be made.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        SocketFile::bind(path, LONGEST, Clients::Owner)
            .map(Self)
            .map_err(|error| refused(path, error))
    }

    /// One that another process has made at a path for this one ([`Self::leave`]).
    ///
    /// # Errors
    /// When it is no socket that listens.
    pub fn given(path: &Path, socket: OwnedFd) -> Result<Self, Error> {
        let given = SocketFile::given(path, socket);
        given.map(Self).map_err(|error| refused(path, error))
    }

    /// Leaves the socket to a process that was given its descriptor.
    pub fn leave(self) {
        self.0.leave();
    }

    /// Finds out whether a socket can be made at a path, without making it.
    ///
    /// # Errors
    /// When there is something else, or no socket can be made there.
    pub fn check(path: &Path) -> Result<Place, Error> {
        match SocketFile::check(path, LONGEST) {
            Ok(_) => Ok(Place::Free),
            Err(SocketError::InUse) => Ok(Place::InUse),
            Err(error) => Err(refused(path, error)),
        }
    }

    /// Serves clients until the server is dropped.
    ///
    /// # Errors
    /// When the host refuses a thread or an event.
    pub fn serve(self, handle: VmHandle) -> Result<ControlServer, Error> {
        let wake = Arc::new(Wake::new()?);
        let listener = self.0.listener().try_clone();
        let listener = listener.map_err(Error::host("cannot duplicate the control socket"))?;
        let threads = handle.confined().threads(ThreadRole::Control);
        let dialogue = Dialogue {
            handle,
            wake: Arc::clone(&wake),
            _file: self.0,
        };
        SocketServer::start_with("control", listener, dialogue, wake, &threads).map(ControlServer)
    }
}

/// A control socket that is served. Dropping it gives clients a moment for what they have not fetched, and takes
/// the socket away.
#[derive(Debug)]
pub struct ControlServer(SocketServer);

/// A control socket whose thread has ended, and whose clients wait. Dropping it lets them go and takes the socket away.
#[derive(Debug)]
pub struct ParkedControl(ParkedServer);

impl ControlServer {
    /// Ends the thread, until [`ParkedControl::serve`]: a process with threads does not fork.
    #[must_use]
    pub fn park(self) -> ParkedControl {
        ParkedControl(self.0.park())
    }
}

impl ParkedControl {
    /// Serves the clients again.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn serve(self) -> Result<ControlServer, Error> {
        self.0.serve().map(ControlServer)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
