//! What became of a fork whose VM does not say it any more. Who listens on the fork's control socket knows: it was made for
//! the fork, and once the VM is gone nobody else has it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm_reference::Command;

use super::connection::Connection;

/// How long a fork that is about to begin may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// What became of a fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its guest runs, or stands still as it was asked to.
    Runs,
    /// There is none, and never will be.
    Unborn,
    /// Its process has ended, perhaps after its guest has run.
    Ended,
    /// It is not known.
    Unknown,
}

/// The device and inode of a file.
pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// Finds out what became of the fork with this control socket, which this process has made with this `identity` and has
/// closed.
pub(super) fn find(control: &Path, made: Option<(u64, u64)>) -> Fate {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if runs(control) {
            return Fate::Runs;
        }
        match UnixStream::connect(control) {
            // A fork that ends in order takes its socket away.
            Err(error) if error.kind() == ErrorKind::NotFound => return Fate::Ended,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                return match identity(control) == made {
                    true => Fate::Unborn,
                    false => Fate::Ended,
                };
            }
            _ => {}
        }
        thread::sleep(LOOK);
    }
    Fate::Unknown
}

/// Whether a VM answers there that runs. One that only begins says that it is created, and may still end instead.
fn runs(control: &Path) -> bool {
    let Ok(mut fork) = Connection::open(control) else {
        return false;
    };
    match fork.ask(&json!(Command::Status {}), &[]) {
        Ok(Ok(status)) => {
            let state = status.get("state").and_then(Value::as_str);
            matches!(state, Some("running" | "paused"))
        }
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_that_nobody_has_any_more_is_of_no_fork() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let made = identity(&path);
        assert_eq!(find(&path, made), Fate::Unborn);
        // Another one's is in its place.
        fs::remove_file(&path).unwrap();
        fs::write(folder.path().join("keeps its inode"), "").unwrap();
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(find(&path, made), Fate::Ended);
        fs::remove_file(&path).unwrap();
        assert_eq!(find(&path, made), Fate::Ended);
    }
}
