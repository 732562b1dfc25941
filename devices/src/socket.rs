//! Sockets of the host's file system on which this process listens.
//!
//! Whoever finds the file can connect: it gets its name when it listens already. The place of a socket whose process
//! is gone is taken over, that of anything else never.

use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Access, Mode, access, fchmod};
use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::descriptor;

/// The longest path, in bytes: an address has 108 (unix(7)), the last one is its end, and the name that the file has
/// at first needs 8 bytes more.
pub const LONGEST: usize = 108 - 1 - SUFFIX;
/// Bytes behind a path that make a name of its own for each socket of each process.
const SUFFIX: usize = 8;
/// Clients that may wait for their turn: as many as the host allows (listen(2)).
const BACKLOG: i32 = i32::MAX;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Another program listens there.
    #[error("another program listens there")]
    InUse,
    /// A file of another kind has that name.
    #[error("there is a file of that name which is no socket")]
    NoSocket,
    /// An open descriptor is no such socket.
    #[error("the descriptor is no Unix stream socket that listens")]
    NotListening,
    /// An address has no room for it.
    #[error("the path has more than {0} bytes")]
    TooLong(usize),
    /// The host refused it.
    #[error(transparent)]
    Host(#[from] io::Error),
}

impl From<Errno> for SocketError {
    fn from(errno: Errno) -> Self {
        Self::Host(errno.into())
    }
}

/// With the kind that the host gave, or would give.
impl From<SocketError> for io::Error {
    fn from(error: SocketError) -> Self {
        let kind = match &error {
            SocketError::InUse => io::ErrorKind::AddrInUse,
            SocketError::NoSocket => io::ErrorKind::AlreadyExists,
            SocketError::TooLong(_) | SocketError::NotListening | SocketError::Host(_) => {
                io::ErrorKind::InvalidInput
            }
        };
        match error {
            SocketError::Host(error) => error,
            error => Self::new(kind, error),
        }
    }
}

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Whom the process' umask lets.
    Umask,
    /// The owner (mode 0600).
    Owner,
}

/// A socket that listens, does not block, and goes with its file.
#[derive(Debug)]
pub struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode; none when somebody else has made it.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// Makes a socket at a path of at most `longest` bytes, or [`LONGEST`].
    ///
    /// # Errors
    /// When there is something else, or a program that listens, or it cannot be made.
    ///
    /// A path that stands for an open descriptor ([`descriptor::of_path`]) is the socket that somebody else has made and
    /// bound, and stays where it is afterwards.
    pub fn bind(path: &Path, longest: usize, clients: Clients) -> Result<Self, SocketError> {
        if let Some(fd) = descriptor::of_path(path) {
            return Self::adopt(path, fd);
        }
        let stale = Self::check(path, longest)?;
        let mut first = path.as_os_str().to_owned();
        first.push(own_suffix());
        let first = Path::new(&first);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        if clients == Clients::Owner {
            // Before it has a name, so that nobody else can connect at any time.
            fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        }
        bind(&socket, &SocketAddrUnix::new(first)?)?;
        let named = (|| {
            listen(&socket, BACKLOG)?;
            let identity = identity(first)?;
            if let Some(stale) = stale {
                take_away(path, stale)?;
            }
            // It takes no other file's place, whatever has been made meanwhile.
            fs::hard_link(first, path)?;
            Ok(identity)
        })();
        let _ = fs::remove_file(first);
        let identity = named.map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => SocketError::InUse,
            _ => error.into(),
        })?;
        Ok(Self {
            listener: socket.into(),
            path: path.to_owned(),
            identity: Some(identity),
        })
    }

    fn adopt(path: &Path, fd: RawFd) -> Result<Self, SocketError> {
        Self::listening(path, descriptor::duplicate(fd)?)
    }

    /// A socket that another process has made at a path for this one, with which its file goes.
    ///
    /// # Errors
    /// When it is no such socket.
    pub fn given(path: &Path, socket: OwnedFd) -> Result<Self, SocketError> {
        let mut socket = Self::listening(path, socket)?;
        path.clone_into(&mut socket.path);
        // Nothing else goes at its end, whatever the path names.
        let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
        socket.identity = identity(path).ok().filter(|_| is_socket);
        Ok(socket)
    }

    /// Leaves the file where it is, to a process that has the socket too.
    pub fn leave(mut self) {
        self.identity = None;
    }

    fn listening(path: &Path, socket: OwnedFd) -> Result<Self, SocketError> {
        let listens = socket_domain(&socket).is_ok_and(|domain| domain == AddressFamily::UNIX)
            && socket_type(&socket).is_ok_and(|kind| kind == SocketType::STREAM)
            && socket_acceptconn(&socket).unwrap_or(false);
        if !listens {
            return Err(SocketError::NotListening);
        }
        let listener = UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self {
            path: address.as_pathname().unwrap_or(path).to_owned(),
            listener,
            identity: None,
        })
    }

    /// Finds out whether a socket can be made, without making it. Gives the identity of one whose process is gone.
    ///
    /// # Errors
    /// When there is something else, or somebody listens, or the folder cannot be written.
    pub fn check(path: &Path, longest: usize) -> Result<Option<(u64, u64)>, SocketError> {
        if let Some(fd) = descriptor::of_path(path) {
            return Self::adopt(path, fd).map(|_| None);
        }
        let longest = longest.min(LONGEST);
        if path.as_os_str().len() > longest {
            return Err(SocketError::TooLong(longest));
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => Err(SocketError::NoSocket),
            Ok(found) => match connect_to(path.as_os_str().as_encoded_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    Ok(Some((found.dev(), found.ino())))
                }
                // Its queue of callers is full.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(SocketError::InUse),
                Err(error) => Err(error.into()),
                Ok(_) => Err(SocketError::InUse),
            },
            Err(_) => {
                let folder = path
                    .parent()
                    .filter(|folder| !folder.as_os_str().is_empty());
                let writable = Access::WRITE_OK | Access::EXEC_OK;
                access(folder.unwrap_or(Path::new(".")), writable)?;
                Ok(None)
            }
        }
    }

    /// What clients connect to.
    #[must_use]
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Not what somebody else has put there since.
        if self.identity.is_some() && identity(&self.path).ok() == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Connects without waiting: a program that has too many callers already is an error.
pub(crate) fn connect_to(path: &[u8]) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// [`SUFFIX`] bytes. A process' number has 22 bits at most (proc_sys_kernel(5), pid_max).
fn own_suffix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % 10;
    format!(".{:06x}{number}", std::process::id())
}

/// Takes a file away that is known by its identity, and no other one that has come into its place.
fn take_away(path: &Path, stale: (u64, u64)) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(own_suffix());
    let aside = Path::new(&aside);
    match fs::rename(path, aside) {
        Ok(()) => {}
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    if identity(aside)? != stale {
        fs::hard_link(aside, path)?;
    }
    fs::remove_file(aside)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    fn at(path: &Path) -> Result<SocketFile, SocketError> {
        SocketFile::bind(path, LONGEST, Clients::Owner)
    }

    #[test]
    fn whoever_finds_the_file_can_connect() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    match UnixStream::connect(&path) {
                        Ok(_) => {}
                        // The socket of the time before goes with its process.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
            for _ in 0..200 {
                let socket = at(&path).unwrap();
                // As at its end: the file goes, then the socket.
                fs::remove_file(&path).unwrap();
                drop(socket);
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_path_has_room_for_its_first_name() {
        let folder = tempfile::tempdir().unwrap();
        let of_len = |len: usize| {
            let mut path = folder.path().join("s").into_os_string();
            path.push("s".repeat(len - path.len()));
            PathBuf::from(path)
        };
        drop(at(&of_len(LONGEST)).unwrap());
        assert!(SocketAddrUnix::new(of_len(LONGEST + SUFFIX)).is_ok());
        assert!(matches!(
            at(&of_len(LONGEST + 1)),
            Err(SocketError::TooLong(LONGEST))
        ));
    }

    #[test]
    fn of_many_that_take_over_a_stale_one_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        for _ in 0..20 {
            drop(UnixListener::bind(&path).unwrap());
            let won: Vec<_> = thread::scope(|scope| {
                let all: Vec<_> = (0..4).map(|_| scope.spawn(|| at(&path))).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            assert_eq!(won.iter().filter(|one| one.is_ok()).count(), 1, "{won:?}");
            drop(won);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_socket_that_was_made_for_this_process_goes_with_it_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let [path, precious] = ["socket", "precious"].map(|name| folder.path().join(name));
        fs::write(&precious, "precious").unwrap();
        for (named, stays) in [(&path, false), (&precious, true)] {
            let made = at(&path).unwrap();
            let listener = made.listener().try_clone().unwrap();
            made.leave();
            assert!(path.exists());
            let given = SocketFile::given(named, listener.into()).unwrap();
            let _client = UnixStream::connect(&path).unwrap();
            assert!(given.listener().accept().is_ok());
            drop(given);
            assert_eq!(named.exists(), stays);
            let _ = fs::remove_file(&path);
        }
        let (stream, _other) = UnixStream::pair().unwrap();
        let refused = SocketFile::given(&path, stream.into());
        assert!(matches!(refused, Err(SocketError::NotListening)));
    }

    #[test]
    fn a_socket_that_somebody_else_has_bound_is_used_and_stays() {
        use std::os::fd::AsRawFd;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let theirs = UnixListener::bind(&path).unwrap();
        let of = |fd: &dyn AsRawFd| PathBuf::from(format!("/dev/fd/{}", fd.as_raw_fd()));
        let socket = at(&of(&theirs)).unwrap();
        assert_eq!(socket.path(), path);
        let _client = UnixStream::connect(&path).unwrap();
        assert!(socket.listener().accept().is_ok());
        drop(socket);
        assert!(path.exists());
        let (stream, _other) = UnixStream::pair().unwrap();
        let file = fs::File::open("/dev/null").unwrap();
        for other in [&stream as &dyn AsRawFd, &file] {
            assert!(matches!(at(&of(other)), Err(SocketError::NotListening)));
        }
    }
}
