//! Jails in a folder of their own, and what is in them.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

pub(crate) const UID: u32 = 61_234;
pub(crate) const GID: u32 = 61_235;
/// How clients call the program.
pub(crate) const NAME: &str = "firecracker";
/// Seconds that anything here may take.
const LIMIT: i64 = 60;

/// Where jails are, and the program that is jailed.
pub(crate) struct House {
    folder: tempfile::TempDir,
}

impl House {
    /// None where there can be no jail.
    pub(crate) fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: jails need root");
            return None;
        }
        if !Path::new("/dev/kvm").exists() {
            eprintln!("SKIPPED: there is no /dev/kvm, as a sign that devices may be used");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let house = Self { folder };
        fs::create_dir(house.base()).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_vmm-jailer-inmate"), house.program()).unwrap();
        Some(house)
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn base(&self) -> PathBuf {
        self.path().join("base")
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.path().join(NAME)
    }

    /// The folder of a jail, with all that is left of it.
    pub(crate) fn jail(&self, id: &str) -> PathBuf {
        self.base().join(NAME).join(id)
    }

    pub(crate) fn root(&self, id: &str) -> PathBuf {
        self.jail(id).join("root")
    }

    /// Puts the libraries there that a program has which is not static: those of this one.
    pub(crate) fn furnish(&self, id: &str) -> PathBuf {
        let root = self.root(id);
        fs::create_dir_all(&root).unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let mut libraries: Vec<_> = maps
            .lines()
            .filter_map(|line| Some(&line[line.find('/')?..]))
            .collect();
        libraries.retain(|path| path.contains(".so"));
        libraries.dedup();
        // A loader is named by the program itself, by a link to it.
        libraries.extend(["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"]);
        for path in libraries
            .into_iter()
            .filter(|path| Path::new(path).exists())
        {
            let inside = root.join(&path[1..]);
            fs::create_dir_all(inside.parent().unwrap()).unwrap();
            fs::copy(path, inside).unwrap();
        }
        root
    }

    pub(crate) fn jailer(&self, id: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jailer"));
        command
            .args([
                "--id",
                id,
                "--uid",
                &UID.to_string(),
                "--gid",
                &GID.to_string(),
            ])
            .arg("--exec-file")
            .arg(self.program())
            .arg("--chroot-base-dir")
            .arg(self.base())
            .stdin(Stdio::piped());
        command
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, id: &str, more: &[&str]) -> Output {
        self.jailer(id).args(more).output().unwrap()
    }

    /// Starts a program that stays in the foreground; gives what it tells.
    pub(crate) fn start(&self, id: &str, more: &[&str]) -> (Inmate, Vec<String>) {
        begin(self.jailer(id).args(more))
    }

    /// The same, after a command of the shell that starts the jailer.
    pub(crate) fn start_after(
        &self,
        before: &str,
        id: &str,
        more: &[&str],
    ) -> (Inmate, Vec<String>) {
        let jailer = self.jailer(id);
        let mut shell = Command::new("sh");
        shell
            .arg("-c")
            .arg(format!("{before} && exec \"$0\" \"$@\""));
        shell.arg(jailer.get_program()).args(jailer.get_args());
        begin(shell.args(more).stdin(Stdio::piped()))
    }

    /// The program whose number is on file.
    pub(crate) fn filed(&self, id: &str) -> Inmate {
        let file = self.root(id).join(format!("{NAME}.pid"));
        let pid = fs::read_to_string(file).unwrap().parse().unwrap();
        Inmate { pid, child: None }
    }
}

/// Starts a jailer whose program stays in the foreground; gives what that tells.
pub(crate) fn begin(jailer: &mut Command) -> (Inmate, Vec<String>) {
    let mut child = jailer.stdout(Stdio::piped()).spawn().unwrap();
    let mut told = Vec::new();
    for line in BufReader::new(child.stdout.as_mut().unwrap())
        .lines()
        .map_while(Result::ok)
    {
        if line == "told" {
            break;
        }
        told.push(line);
    }
    assert!(!told.is_empty(), "{:?}", child.wait());
    let inmate = Inmate {
        pid: child.id().cast_signed(),
        child: Some(child),
    };
    (inmate, told)
}

/// A jailed program; it ends with this.
pub(crate) struct Inmate {
    pub(crate) pid: i32,
    child: Option<Child>,
}

impl Inmate {
    /// What the kernel says of it.
    pub(crate) fn proc(&self, file: &str) -> String {
        let bytes = fs::read(format!("/proc/{}/{file}", self.pid)).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The words behind a name in its status.
    pub(crate) fn status(&self, name: &str) -> Vec<String> {
        let status = self.proc("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    }

    pub(crate) fn link(&self, file: &str) -> PathBuf {
        fs::read_link(format!("/proc/{}/{file}", self.pid)).unwrap()
    }

    /// What is open, by number.
    pub(crate) fn open(&self) -> Vec<(u32, PathBuf)> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap();
        let mut open: Vec<_> = entries
            .map(|entry| entry.unwrap())
            .map(|entry| {
                (
                    entry.file_name().to_str().unwrap().parse().unwrap(),
                    fs::read_link(entry.path()).unwrap(),
                )
            })
            .collect();
        open.sort();
        open
    }
}

impl Drop for Inmate {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        let Some(fd) =
            Pid::from_raw(self.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        else {
            return;
        };
        let _ = pidfd_send_signal(&fd, Signal::KILL);
        let limit = Timespec {
            tv_sec: LIMIT,
            tv_nsec: 0,
        };
        let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit));
    }
}

/// Where cgroups with a controller are mounted, by version.
pub(crate) fn mounted(version: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mut found = mounts.lines().filter_map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        let folder = PathBuf::from(fields[1]);
        let fits = match version {
            "1" => fields[2] == "cgroup" && fields[3].split(',').any(|option| option == "pids"),
            _ => fields[2] == "cgroup2",
        };
        fits.then_some(folder)
    });
    found.next()
}

/// Owner, group and mode.
pub(crate) fn owner(path: &Path) -> (u32, u32, u32) {
    let there = fs::symlink_metadata(path).unwrap();
    (there.uid(), there.gid(), there.mode() & 0o7777)
}

/// What was said of an error; it has to be one.
pub(crate) fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
