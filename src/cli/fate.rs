//! What became of a fork whose VM does not say it any more. Who listens on the fork's control socket knows: it was made for
//! the fork, and once the VM is gone nobody else has it.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm_reference::Command;

use super::connection::Connection;
use super::new_file::is_at;

/// How long a fork that is about to begin may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// What became of a fork. That there never was one is not among it: one that ran and was killed leaves the same behind as
/// one that has never begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its guest runs, or stands still as it was asked to.
    Runs,
    /// There is none any more. Its guest may have run.
    Ended,
    /// Another one's socket is in the place of its own, which tells nothing.
    Replaced,
    /// It is not known.
    Unknown,
}

/// The file of a socket, of whatever kind, without opening what it is. While it is held, no other file is taken for it.
pub(super) fn pin(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    options.custom_flags(libc::O_PATH | libc::O_NOFOLLOW);
    options.open(path)
}

/// Finds out what became of the fork with this control socket, which this process has made as the file `made` and has
/// closed.
pub(super) fn find(control: &Path, made: Option<&File>) -> Fate {
    let is_own = || made.map_or(Ok(false), |made| is_at(made, control));
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        // Who answers is who has the socket before and after.
        let before = is_own();
        let seen = look(control);
        match (before, is_own()) {
            (Ok(true), Ok(true)) => match seen {
                Seen::Runs => return Fate::Runs,
                Seen::Nobody => return Fate::Ended,
                Seen::Somebody => {}
            },
            (Ok(false), _) | (_, Ok(false)) => return Fate::Replaced,
            // A fork that ends in order takes its socket away.
            (_, Err(error)) if error.kind() == ErrorKind::NotFound => return Fate::Ended,
            _ => {}
        }
        thread::sleep(LOOK);
    }
    Fate::Unknown
}

/// What a look at a socket shows.
enum Seen {
    /// A VM answers that runs.
    Runs,
    /// Nobody has the socket open.
    Nobody,
    /// Neither is known.
    Somebody,
}

fn look(control: &Path) -> Seen {
    if runs(control) {
        return Seen::Runs;
    }
    match UnixStream::connect(control) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Seen::Nobody,
        _ => Seen::Somebody,
    }
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
    use std::fs;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    use vmm_reference::PROTOCOL;

    use super::*;

    #[test]
    fn a_socket_that_nobody_has_any_more_is_of_a_fork_that_may_have_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let made = pin(&path).unwrap();
        assert_eq!(find(&path, Some(&made)), Fate::Ended);
        // It has taken it away.
        fs::remove_file(&path).unwrap();
        assert_eq!(find(&path, Some(&made)), Fate::Ended);
    }

    /// A VM that runs, as far as its control socket says.
    fn vm(path: &Path) {
        let listener = UnixListener::bind(path).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                // Who only connects is gone by now.
                let greeting = json!({ "protocol": PROTOCOL });
                if writeln!(stream, "{greeting}").is_ok() {
                    let mut line = String::new();
                    let _ = BufReader::new(&stream).read_line(&mut line);
                    let _ = writeln!(stream, "{}", json!({ "ok": { "state": "running" } }));
                }
            }
        });
    }

    #[test]
    fn another_vm_at_the_path_of_a_fork_is_not_the_fork() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        vm(&path);
        let made = pin(&path).unwrap();
        assert_eq!(find(&path, Some(&made)), Fate::Runs);
        // A file system may give its number to the next file at once, but not while somebody holds it.
        fs::remove_file(&path).unwrap();
        vm(&path);
        assert_eq!(find(&path, Some(&made)), Fate::Replaced);
        assert_eq!(find(&path, None), Fate::Replaced);
    }
}
