//! From a process with the jail as its root to the program: a daemon, a namespace of processes, the file with the
//! process' number, limits, user, exec.
//!
//! Whoever started the jailer waits for its end: that comes when the program runs, or with what was wrong, also where
//! other processes have done the work since.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Rlimit, WaitOptions, getpid, setrlimit, setsid, waitpid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{UnshareFlags, set_no_new_privs};
use rustix::time::{ClockId, clock_gettime};

use crate::arguments::{Arguments, Limits};
use crate::error::{JailerError, Result, on, step};
use crate::sys::{Forked, fork, leads_its_session, unshare};

/// Said when all but exec(2) is done.
const READY: u8 = b'+';

/// Microseconds.
pub(crate) fn now(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let part = |number: i64| u64::try_from(number).unwrap_or_default();
    part(time.tv_sec) * 1_000_000 + part(time.tv_nsec) / 1000
}

/// What is started, in a jail that is entered.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) arguments: &'a Arguments,
    /// Of the program.
    pub(crate) name: &'a OsStr,
    /// For a daemon.
    pub(crate) null: Option<File>,
    /// When the jailer began, in microseconds.
    pub(crate) began: u64,
}

impl Start<'_> {
    /// Comes back when the program runs in another process, or does not.
    pub(crate) fn run(&self) -> Result<()> {
        match &self.null {
            Some(null) => self.daemon(null),
            None => self.here(0, None),
        }
    }

    /// Twice, so that it leads no session and gets no terminal any more.
    fn daemon(&self, null: &File) -> Result<()> {
        let spent = now(ClockId::ProcessCPUTime);
        let (reader, mut teller) = pipe()?;
        if let Forked::Parent(child) = fork().map_err(step("daemonize"))? {
            drop(teller);
            // It ends at once. Nothing is learnt from how.
            let _ = waitpid(Some(child), WaitOptions::empty());
            return outcome(reader);
        }
        drop(reader);
        let done = self.first_child(null, spent, &teller);
        tell(&mut teller, &done);
        std::process::exit(i32::from(done.is_err()))
    }

    fn first_child(&self, null: &File, spent: u64, teller: &File) -> Result<()> {
        setsid().map_err(step("get a new session"))?;
        if let Forked::Parent(_) = fork().map_err(step("daemonize"))? {
            // Its child tells.
            std::process::exit(0);
        }
        dup2_stdin(null).map_err(step("make /dev/null standard input"))?;
        dup2_stdout(null).map_err(step("make /dev/null standard output"))?;
        dup2_stderr(null).map_err(step("make /dev/null standard error"))?;
        self.here(spent, Some(teller))
    }

    /// `spent`: processor time of processes before this one. `teller`: of a daemon.
    fn here(&self, spent: u64, teller: Option<&File>) -> Result<()> {
        if self.arguments.new_pid_ns {
            return self.first_of_a_namespace(spent);
        }
        self.write_pid(getpid())?;
        self.exec(spent, teller)
    }

    fn first_of_a_namespace(&self, spent: u64) -> Result<()> {
        // Its end would send SIGHUP to those in its session, the program among them.
        let leads = leads_its_session();
        unshare(UnshareFlags::NEWPID).map_err(step("get a namespace of processes"))?;
        let spent = spent + now(ClockId::ProcessCPUTime);
        let (reader, mut teller) = pipe()?;
        let (mut wait, mut go) = pipe()?;
        if let Forked::Parent(child) = fork().map_err(step("start a process in a new namespace"))? {
            drop((teller, wait));
            self.write_pid(child)?;
            // A child that has ended tells why.
            let _ = go.write_all(&[READY]);
            return outcome(reader);
        }
        drop((reader, go));
        // Not before its number is on file; if that fails, it ends here.
        if wait.read_exact(&mut [0]).is_err() {
            std::process::exit(1);
        }
        let session = if leads { setsid().map(drop) } else { Ok(()) };
        let done = session
            .map_err(step("get a new session"))
            .and_then(|()| self.exec(spent, Some(&teller)));
        tell(&mut teller, &done);
        std::process::exit(1)
    }

    /// Clients read it from the jail's folder.
    fn write_pid(&self, pid: Pid) -> Result<()> {
        let mut path = Path::new("/").join(self.name).into_os_string();
        path.push(".pid");
        let path = PathBuf::from(path);
        let file = File::options().write(true).create_new(true).open(&path);
        let mut file = file.map_err(on("create the file", &path))?;
        write!(file, "{}", pid.as_raw_nonzero()).map_err(on("write to", &path))
    }

    /// Becomes the program, or says why not.
    fn exec(&self, spent: u64, teller: Option<&File>) -> Result<()> {
        let Arguments {
            id,
            uid,
            gid,
            limits,
            rest,
            ..
        } = self.arguments;
        let path = Path::new("/").join(self.name);
        let used = now(ClockId::ProcessCPUTime);
        let mut command = Command::new(&path);
        command
            .args(["--id", id])
            .args(["--start-time-us", &self.began.to_string()])
            .args(["--start-time-cpu-us", &used.to_string()])
            .args(["--parent-cpu-time-us", &(spent + used).to_string()])
            .args(rest)
            .env_clear()
            // As root this takes all other groups away too.
            .gid(*gid)
            .uid(*uid);
        // Last, since they would bind the jailer as well.
        limits.set()?;
        set_no_new_privs(true).map_err(step("rule out new privileges"))?;
        if let Some(mut teller) = teller {
            teller
                .write_all(&[READY])
                .map_err(step("tell that the program starts"))?;
        }
        let source = command.exec();
        let cure = match Errno::from_io_error(&source) {
            Some(Errno::NOENT) => {
                ": a program that is not static needs its loader and libraries in the jail"
            }
            Some(Errno::ACCESS) => {
                ": it has to be executable for this user, on a file system without noexec"
            }
            _ => "",
        };
        Err(JailerError::Path {
            what: "exec into",
            path,
            source,
            cure,
        })
    }
}

impl Limits {
    fn set(self) -> Result<()> {
        let size = self
            .file_size
            .map(|size| (Resource::Fsize, "size of file", size));
        let files = Some((Resource::Nofile, "number of file descriptors", self.files));
        for (resource, name, value) in [size, files].into_iter().flatten() {
            let limit = Rlimit {
                current: Some(value),
                maximum: Some(value),
            };
            setrlimit(resource, limit).map_err(|errno| JailerError::SetLimit {
                name,
                value,
                source: errno.into(),
                cure: if errno == Errno::PERM {
                    ": only root goes beyond the hard limit (ulimit -H): give a lower --resource-limit"
                } else {
                    ""
                },
            })?;
        }
        Ok(())
    }
}

/// Its ends close when the program is there.
fn pipe() -> Result<(File, File)> {
    let (reader, writer): (OwnedFd, OwnedFd) =
        pipe_with(PipeFlags::CLOEXEC).map_err(step("make a pipe"))?;
    Ok((reader.into(), writer.into()))
}

/// What another process has come to. What it says after it was ready is why exec(2) failed.
fn outcome(mut reader: File) -> Result<()> {
    let mut said = Vec::new();
    reader
        .read_to_end(&mut said)
        .map_err(step("hear whether the program has started"))?;
    let text = said.strip_prefix(&[READY]).unwrap_or(&said);
    if !text.is_empty() {
        return Err(JailerError::Said(
            OsStr::from_bytes(text).display().to_string(),
        ));
    }
    if said.is_empty() {
        return Err(JailerError::Said(
            "The process that was to become the program was ended".to_owned(),
        ));
    }
    Ok(())
}

/// Nobody is left to hear of it if that fails.
fn tell(teller: &mut File, done: &Result<()>) {
    let _ = match done {
        Ok(()) => teller.write_all(&[READY]),
        Err(error) => teller.write_all(error.to_string().as_bytes()),
    };
}
