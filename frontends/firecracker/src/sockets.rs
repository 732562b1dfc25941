//! The API's socket.

use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// A socket that listens by the time that it has its name: clients take the file for a sign that they may connect. Where
/// there is no room for another name, or a file has only one, it has its name a moment before.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let mut first = path.as_os_str().to_owned();
    first.push(format!(".{}", std::process::id()));
    let Ok(listener) = UnixListener::bind(&first) else {
        return UnixListener::bind(path);
    };
    let named = fs::hard_link(&first, path);
    fs::remove_file(&first)?;
    match named {
        Ok(()) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        Err(_) => UnixListener::bind(path),
    }
}
