//! The world outside: who listens there, who may be signalled, and the program that tries.

#![allow(dead_code)] // each test binary uses a part

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use tempfile::TempDir;

/// A user that no table has.
pub(crate) const ORDINARY: u32 = 61234;

fn is_root() -> bool {
    // The owner of what this process makes is its user.
    tempfile::tempdir()
        .unwrap()
        .path()
        .metadata()
        .unwrap()
        .uid()
        == 0
}

/// Root and an ordinary user, or who runs the test.
pub(crate) fn users() -> Vec<Option<u32>> {
    if is_root() {
        vec![None, Some(ORDINARY)]
    } else {
        vec![None]
    }
}

pub(crate) struct Outside {
    user: Option<u32>,
    folder: TempDir,
    tcp: TcpListener,
    name: String,
    _named: UnixListener,
    _at_path: UnixListener,
    target: Child,
}

impl Outside {
    /// The world of a user, whom nothing in it keeps out.
    pub(crate) fn of(user: Option<u32>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        // Where the build lies, that user may not be let in. Copied by another process: a child of this one, started
        // by another test meanwhile, would have the file open for writing, and nobody could execute it.
        let mut copy = Command::new("cp");
        copy.arg(env!("CARGO_BIN_EXE_vmm-jail-attempt"))
            .arg(at("program"));
        assert!(copy.status().unwrap().success());
        fs::create_dir(at("sockets")).unwrap();
        let listening = UnixListener::bind(at("socket")).unwrap();
        fs::write(at("file"), "x").unwrap();
        for name in ["", "program", "sockets", "socket", "file"] {
            fs::set_permissions(at(name), fs::Permissions::from_mode(0o777)).unwrap();
            if let Some(uid) = user {
                chown(at(name), Some(uid), Some(uid)).unwrap();
            }
        }
        let name = format!("jail-attempts-{}", folder.path().display());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let mut outside = Self {
            user,
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            _named: UnixListener::bind_addr(&address).unwrap(),
            name,
            _at_path: listening,
            target: Command::new("true").spawn().unwrap(),
            folder,
        };
        outside.target.wait().unwrap();
        outside.target = outside.spawn(&[], "off", &["wait"]);
        outside
    }

    /// `None` when this is not root, who can be it.
    pub(crate) fn of_root() -> Option<Self> {
        if is_root() {
            return Some(Self::of(None));
        }
        eprintln!("SKIPPED: this needs root");
        None
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    pub(crate) fn sockets(&self) -> String {
        self.at("sockets")
    }

    /// `under`: a program that is asked to start this one.
    fn spawn(&self, under: &[&str], sandbox: &str, words: &[&str]) -> Child {
        let program = self.at("program");
        let mut line = under.iter().copied().chain([&program[..]]);
        let mut command = Command::new(line.next().unwrap());
        command
            .args(line)
            .arg(sandbox)
            .arg(format!("sockets={}", self.sockets()))
            .args(words)
            .env("ATTEMPT_TARGET", self.target.id().to_string())
            .env(
                "ATTEMPT_PORT",
                self.tcp.local_addr().unwrap().port().to_string(),
            )
            .env("ATTEMPT_NAME", &self.name)
            .env("ATTEMPT_PATH", self.at("socket"))
            .env("ATTEMPT_FILE", self.at("file"))
            .env("ATTEMPT_SOCKETS", self.sockets())
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(uid) = self.user {
            command.uid(uid).gid(uid);
        }
        command.spawn().unwrap()
    }

    /// Enters the sandbox and makes these attempts.
    pub(crate) fn run(&self, sandbox: &str, words: &[&str]) -> Ran {
        self.both(&[], sandbox, words)
    }

    /// Whether the namespaces were made ahead by another process or not: it comes to the same.
    fn both(&self, under: &[&str], sandbox: &str, words: &[&str]) -> Ran {
        let ahead = [&["ahead=yes"], words].concat();
        let ahead = Ran::new(self.spawn(under, sandbox, &ahead));
        let ran = Ran::new(self.spawn(under, sandbox, words));
        let told = |ran: &Ran| (ran.status, ran.signal, ran.stdout.clone());
        assert_eq!(told(&ahead), told(&ran), "{words:?} {}", ahead.stderr);
        ran
    }

    /// The same, started by another program; `None` when there is none of this name.
    pub(crate) fn run_under(&self, under: &[&str], sandbox: &str, words: &[&str]) -> Option<Ran> {
        let found = Command::new(under[0]).arg("--version").output();
        if found.is_err() {
            eprintln!("SKIPPED: there is no {}", under[0]);
            return None;
        }
        Some(self.both(under, sandbox, words))
    }

    /// The same, with `wait` as the last attempt: it is there to be looked at.
    pub(crate) fn start(&self, sandbox: &str, words: &[&str]) -> Running {
        let mut child = self.spawn(&[], sandbox, words);
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        while !said.ends_with("waiting\n") {
            let read = stdout.read_line(&mut said).unwrap();
            assert_ne!(read, 0, "{said} {:?}", child.wait_with_output());
        }
        Running {
            child,
            _stdout: stdout,
        }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.target.kill();
        let _ = self.target.wait();
    }
}

pub(crate) struct Ran {
    pub(crate) status: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    fn new(child: Child) -> Self {
        let output = child.wait_with_output().unwrap();
        Self {
            status: output.status.code(),
            signal: output.status.signal(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn line(&self, start: &str) -> &str {
        let found = self
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix(start));
        found.unwrap_or_else(|| panic!("no {start:?}: {} {}", self.stdout, self.stderr))
    }

    pub(crate) fn level(&self) -> &str {
        self.line("level: ")
    }

    /// `done`, or what the kernel said.
    pub(crate) fn result(&self, attempt: &str) -> &str {
        self.line(&format!("{attempt}: "))
    }

    /// Why a part is missing.
    pub(crate) fn missing(&self, part: &str) -> &str {
        self.line(&format!("missing: {part}: "))
    }

    pub(crate) fn missing_parts(&self) -> Vec<&str> {
        let lines = self.stdout.lines();
        let missing = lines.filter_map(|line| line.strip_prefix("missing: ")?.split(':').next());
        missing.collect()
    }
}

/// A process that has entered its sandbox and waits.
pub(crate) struct Running {
    child: Child,
    /// It has something to say at its end.
    _stdout: BufReader<ChildStdout>,
}

impl Running {
    fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.child.id().to_string())
            .join(name)
    }

    /// A file of its own below /proc.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.proc(name)).unwrap()
    }

    pub(crate) fn owner_of(&self, name: &str) -> u32 {
        self.proc(name).metadata().unwrap().uid()
    }

    /// How many directories it has open.
    pub(crate) fn directories(&self) -> usize {
        let open = fs::read_dir(self.proc("fd")).unwrap();
        let kinds = open.map(|entry| fs::metadata(entry.unwrap().path()).unwrap().file_type());
        kinds
            .filter(|kind| kind.is_dir() && !kind.is_socket())
            .count()
    }

    pub(crate) fn end(&mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A new cgroup, which goes with the value.
pub(crate) fn cgroup() -> Option<NewCgroup> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mut cgroups = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (_, path, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then_some(path)
    });
    let path = Path::new(cgroups.next()?).join(format!("jail-attempts-{}", std::process::id()));
    fs::create_dir(&path).ok()?;
    File::options()
        .write(true)
        .open(path.join("cgroup.procs"))
        .ok()?;
    Some(NewCgroup(path))
}

pub(crate) struct NewCgroup(PathBuf);

impl NewCgroup {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for NewCgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
