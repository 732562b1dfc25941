//! Which process of the host has a file or a tap device, for messages. What cannot be found out, because
//! the process belongs to another user or to another namespace, is left out.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::sealed::is_sealed;

/// A process that has what a device needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    /// In this process' PID namespace.
    pid: u32,
    /// The name of its program, as far as the kernel keeps it (15 bytes).
    name: Option<String>,
}

impl Holder {
    fn new(pid: u32) -> Self {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        Self {
            pid,
            name: name.ok().map(|name| name.trim_end().to_owned()),
        }
    }

    fn is_us(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            _ if self.is_us() => f.write_str("this process"),
            Some(name) => write!(f, "process {} ({name})", self.pid),
            None => write!(f, "process {}", self.pid),
        }
    }
}

/// Holders as the end of a sentence: ` by process 1 (a) and process 2 (b)`, or nothing.
pub(super) fn by(holders: &[Holder]) -> String {
    /// A line has an end.
    const MOST: usize = 4;
    let names: Vec<_> = holders.iter().take(MOST).map(Holder::to_string).collect();
    match names.len() {
        0 => String::new(),
        _ => format!(" by {}", names.join(" and ")),
    }
}

/// The entries of a folder whose names are numbers.
fn numbers(folder: &Path) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Processes with a descriptor that `is_it` recognises, by its path below /proc and by what the kernel
/// tells of it (/proc/PID/fdinfo, proc_pid_fdinfo(5)).
pub(super) fn processes(is_it: impl Fn(&Path, &str) -> bool) -> Vec<Holder> {
    if is_sealed() {
        return Vec::new();
    }
    let has = |pid: &u32| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        numbers(&process.join("fd")).any(|fd| {
            let info = fs::read_to_string(process.join(format!("fdinfo/{fd}")));
            info.is_ok_and(|info| is_it(&process.join(format!("fd/{fd}")), &info))
        })
    };
    let found = numbers(Path::new("/proc")).filter(has);
    found.map(Holder::new).collect()
}

/// Processes that hold a lock on a file.
#[cfg(feature = "virtio-blk")]
pub(super) fn of_lock(file: &fs::File) -> Vec<Holder> {
    use std::os::unix::fs::MetadataExt;
    let Ok(wanted) = file.metadata() else {
        return Vec::new();
    };
    let holders = processes(|path, info| {
        let locks = info.lines().any(|line| line.starts_with("lock:"));
        locks
            && fs::metadata(path)
                .is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()))
    });
    if !holders.is_empty() || is_sealed() {
        return holders;
    }
    // Descriptors of other users are not shown; their locks are, with the process that took them.
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let (major, minor) = (
        rustix::fs::major(wanted.dev()),
        rustix::fs::minor(wanted.dev()),
    );
    lockers(&locks, &format!("{major:02x}:{minor:02x}:{}", wanted.ino()))
}

/// The processes in the text of /proc/locks (proc_locks(5)) that hold a lock on a file there.
#[cfg(feature = "virtio-blk")]
fn lockers(locks: &str, file: &str) -> Vec<Holder> {
    let mut found: Vec<u32> = locks
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            // "->" waits for the lock of the line before.
            let (kind, pid, place) = (fields.next()?, fields.nth(2)?, fields.next()?);
            // A lock of an open file description has no process, one of another PID namespace 0.
            let pid = pid.parse().ok().filter(|pid| *pid > 0)?;
            (kind != "->" && place == file).then_some(pid)
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found.into_iter().map(Holder::new).collect()
}

#[cfg(all(test, feature = "virtio-blk"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_of_locks_names_those_who_hold_a_file() {
        let locks = "1: FLOCK  ADVISORY  WRITE 4123456 08:01:99 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 4123457 08:01:99 0 EOF\n\
                     2: OFDLCK ADVISORY  READ -1 08:01:99 100 101\n\
                     3: POSIX  ADVISORY  READ 4123458 08:01:98 0 EOF\n\
                     4: POSIX  ADVISORY  READ 0 08:01:99 0 EOF\nrubbish\n";
        let found = lockers(locks, "08:01:99");
        assert_eq!(by(&found), " by process 4123456");
        assert_eq!(by(&lockers(locks, "08:01:97")), "");
    }

    #[test]
    fn a_lock_of_another_process_is_found_with_its_name() {
        use crate::virtio::testing::spawn;
        use std::io::{BufRead, BufReader};
        use std::process::{Command, Stdio};
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut flock = Command::new("flock");
        flock.arg(file.path());
        flock.args(["sh", "-c", "echo locked; read end"]);
        let child = spawn(flock.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let Ok(mut child) = child else {
            eprintln!("skipped: no flock(1)");
            return;
        };
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        let found = by(&of_lock(file.as_file()));
        assert!(found.contains("(flock)"), "{found}");
        assert!(found.contains(&child.id().to_string()), "{found}");
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(of_lock(file.as_file()).is_empty());
    }
}
