//! What somebody would try who has taken over the process.

use std::env;
use std::ffi::{CString, c_long};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Barrier;
use std::thread;

use jail::{Filter, Role, roles};
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::Result;

/// The crate libc does not have it on riscv64.
const KEXEC_FILE_LOAD: c_long = if cfg!(target_arch = "x86_64") {
    320
} else {
    294
};

/// What attempts aim at, from the environment of the test.
pub(crate) struct Prepared {
    /// A process outside, of the same user.
    target: c_long,
    /// Where somebody listens outside: TCP on this host, an abstract name, a path.
    port: u16,
    name: String,
    path: String,
    /// A file of the user.
    file: String,
    /// A folder that was kept for sockets.
    sockets: String,
    /// A program in memory that nobody can see in any file system.
    program: OwnedFd,
}

/// A system call as it is.
fn call(number: c_long, arguments: [c_long; 6]) -> io::Result<c_long> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the pointers among the arguments are null, or lead to what lives until the call returns; what a call
    // should do to this process, it is here to try.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn address(text: &CString) -> c_long {
    text.as_ptr() as c_long
}

impl Prepared {
    pub(crate) fn new(attempts: &[String]) -> Result<Self> {
        let from = |name: &str| env::var(format!("ATTEMPT_{name}")).unwrap_or_default();
        let name = CString::new("program")?;
        let memory = call(libc::SYS_memfd_create, [address(&name), 0, 0, 0, 0, 0])?;
        // SAFETY: the kernel has just made it, and nobody else knows it.
        let program = unsafe { OwnedFd::from_raw_fd(i32::try_from(memory)?) };
        if attempts.iter().any(|name| name == "execute-memory") {
            File::from(program.try_clone()?).write_all(&fs::read("/proc/self/exe")?)?;
        }
        Ok(Self {
            target: from("TARGET").parse().unwrap_or(1),
            port: from("PORT").parse().unwrap_or(1),
            name: from("NAME"),
            path: from("PATH"),
            file: from("FILE"),
            sockets: from("SOCKETS"),
            program,
        })
    }

    /// `done` when it worked, else what the kernel said.
    pub(crate) fn attempt(&self, name: &str) -> String {
        match self.result(name) {
            Ok(()) => "done".to_owned(),
            Err(error) => match error.raw_os_error() {
                Some(errno) => ERRNOS
                    .iter()
                    .find(|(_, number)| *number == errno)
                    .map_or_else(|| errno.to_string(), |(name, _)| (*name).to_owned()),
                None => error.to_string(),
            },
        }
    }

    fn result(&self, name: &str) -> io::Result<()> {
        let target = self.target;
        let call = |number, arguments| call(number, arguments).map(drop);
        match name {
            "nothing" => Ok(()),
            "wait" => {
                println!("waiting");
                io::stdin().read_to_end(&mut Vec::new()).map(drop)
            }
            "print" => writeln!(io::stderr(), "printed"),
            "allocate" => {
                let bytes: Vec<_> = (0..64u8).map(|n| vec![n; 1 << 16]).collect();
                drop(bytes);
                drop(vec![1u8; 4 << 20]);
                Ok(())
            }
            "panic" => panic!("as asked"),
            "thread-of-vcpu" => thread_of(&roles::VCPU, || Ok(())),
            "vcpu-opens" => thread_of(&roles::VCPU, || {
                call(libc::SYS_getrandom, [0, 0, 0, 0, 0, 0])
            }),
            "many-threads" => many_threads(),
            "open" => File::open("/etc/passwd").map(drop),
            "open-kvm" => File::open("/dev/kvm").map(drop),
            "open-proc" => fs::read_dir("/proc").map(drop),
            "list-root" => {
                let names = fs::read_dir("/")?.collect::<io::Result<Vec<_>>>()?;
                Err(io::Error::other(format!("{} names", names.len())))
            }
            "make" => fs::create_dir("/new"),
            "truncate" => {
                let path = CString::new(self.file.as_str())?;
                call(libc::SYS_truncate, [address(&path), 0, 0, 0, 0, 0])
            }
            "parent" => self.parent(),
            "connect-tcp" => std::net::TcpStream::connect(("127.0.0.1", self.port)).map(drop),
            "connect-name" => {
                let address = SocketAddr::from_abstract_name(&self.name)?;
                UnixStream::connect_addr(&address).map(drop)
            }
            "connect-path" => UnixStream::connect(&self.path).map(drop),
            "kept-socket" => {
                let path = format!("{}/made", self.sockets);
                let _listener = UnixListener::bind(&path)?;
                UnixStream::connect(&path)?;
                fs::remove_file(&path)
            }
            "kept-file" => fs::write(format!("{}/file", self.sockets), "x"),
            "packets" => call(
                libc::SYS_socket,
                [libc::AF_PACKET.into(), libc::SOCK_RAW.into(), 0, 0, 0, 0],
            ),
            "execute" => {
                let path = CString::new("/proc/self/exe")?;
                call(libc::SYS_execve, [address(&path), 0, 0, 0, 0, 0])
            }
            "execute-memory" => {
                let (fd, path) = (self.program.as_raw_fd().into(), CString::default());
                let empty = libc::AT_EMPTY_PATH.into();
                call(libc::SYS_execveat, [fd, address(&path), 0, 0, empty, 0])
            }
            "fork" => match self::call(libc::SYS_clone, [17, 0, 0, 0, 0, 0])? {
                // SAFETY: ends the child and runs nothing of the parent in it.
                0 => unsafe { libc::_exit(0) },
                _ => Ok(()),
            },
            "signal" => call(libc::SYS_kill, [target, 0, 0, 0, 0, 0]),
            "memory-file" => {
                let name = CString::new("state")?;
                let cloexec = libc::MFD_CLOEXEC.into();
                call(
                    libc::SYS_memfd_create,
                    [address(&name), cloexec, 0, 0, 0, 0],
                )
            }
            "signal-threads" => call(libc::SYS_tkill, [target, 0, 0, 0, 0, 0]),
            "signal-other" => call(libc::SYS_tgkill, [target, target, 0, 0, 0, 0]),
            "node-at" => {
                let path = CString::new("/new")?;
                let here = libc::AT_FDCWD.into();
                call(libc::SYS_mknodat, [here, address(&path), 0o20_666, 0, 0, 0])
            }
            "users" => call(libc::SYS_setreuid, [0, 0, 0, 0, 0, 0]),
            "own-group" => call(libc::SYS_setgid, [0, 0, 0, 0, 0, 0]),
            "other-group" => call(libc::SYS_setregid, [0, 0, 0, 0, 0, 0]),
            "all-groups" => call(libc::SYS_setgroups, [0, 0, 0, 0, 0, 0]),
            "three-groups" => call(libc::SYS_setresgid, [0, 0, 0, 0, 0, 0]),
            "capabilities" => call(libc::SYS_capset, [0, 0, 0, 0, 0, 0]),
            "time" => call(libc::SYS_settimeofday, [0, 0, 0, 0, 0, 0]),
            "clock" => call(libc::SYS_clock_adjtime, [0, 0, 0, 0, 0, 0]),
            "adjust" => call(libc::SYS_adjtimex, [0, 0, 0, 0, 0, 0]),
            "kexec" => call(KEXEC_FILE_LOAD, [-1, -1, 0, 0, 0, 0]),
            "module" => call(libc::SYS_delete_module, [0, 0, 0, 0, 0, 0]),
            "mount-attributes" => call(libc::SYS_mount_setattr, [-1, 0, 0, 0, 0, 0]),
            "mount-again" => call(libc::SYS_fspick, [-1, 0, 0, 0, 0, 0]),
            "mount-configure" => call(libc::SYS_fsconfig, [-1, 0, 0, 0, 0, 0]),
            "only-thread" => {
                let thread = libc::CLONE_THREAD.into();
                call(libc::SYS_unshare, [thread, 0, 0, 0, 0, 0])
            }
            "fork-in-namespace" => {
                let flags = c_long::from(libc::CLONE_NEWUSER) | 17;
                match self::call(libc::SYS_clone, [flags, 0, 0, 0, 0, 0])? {
                    // SAFETY: ends the child and runs nothing of the parent in it.
                    0 => unsafe { libc::_exit(0) },
                    _ => Ok(()),
                }
            }
            "new-clone" => call(libc::SYS_clone3, [0, 0, 0, 0, 0, 0]),
            "signal-thread" => {
                let signal = libc::SIGRTMIN().into();
                call(libc::SYS_tgkill, [target, target, signal, 0, 0, 0])
            }
            "trace" => {
                let seize = libc::PTRACE_SEIZE.into();
                call(libc::SYS_ptrace, [seize, target, 0, 0, 0, 0])
            }
            "read-memory" => {
                let mut byte = [0u8; 1];
                let here = [byte.as_mut_ptr() as c_long, 1];
                let vector = here.as_ptr() as c_long;
                call(
                    libc::SYS_process_vm_readv,
                    [target, vector, 1, vector, 1, 0],
                )
            }
            "limit" => call(
                libc::SYS_prlimit64,
                [target, c_long::from(libc::RLIMIT_CORE), 0, 0, 0, 0],
            ),
            "mount" => {
                let (kind, at) = (CString::new("tmpfs")?, CString::new("/")?);
                let (kind, at) = (address(&kind), address(&at));
                call(libc::SYS_mount, [kind, at, kind, 0, 0, 0])
            }
            "unmount" => {
                let at = CString::new("/")?;
                let lazy = libc::MNT_DETACH.into();
                call(libc::SYS_umount2, [address(&at), lazy, 0, 0, 0, 0])
            }
            "chroot" => {
                let at = CString::new("/")?;
                call(libc::SYS_chroot, [address(&at), 0, 0, 0, 0, 0])
            }
            "namespace" => {
                let user = libc::CLONE_NEWUSER.into();
                call(libc::SYS_unshare, [user, 0, 0, 0, 0, 0])
            }
            "bpf" => {
                // BPF_MAP_CREATE of an array with one element.
                let map = [2u32, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0];
                let (at, len) = (map.as_ptr() as c_long, size_of_val(&map) as c_long);
                call(libc::SYS_bpf, [0, at, len, 0, 0, 0])
            }
            "user" => call(libc::SYS_setresuid, [0, 0, 0, 0, 0, 0]),
            "groups" => {
                let groups = self::call(libc::SYS_getgroups, [0; 6])?;
                Err(io::Error::other(groups.to_string()))
            }
            "host-name" => {
                let name = CString::new("mine")?;
                call(libc::SYS_sethostname, [address(&name), 4, 0, 0, 0, 0])
            }
            "executable-memory" => {
                let (all, anonymous) = (7, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
                call(libc::SYS_mmap, [0, 4096, all, anonymous.into(), -1, 0])
            }
            "handler" => {
                let signal = libc::SIGSYS.into();
                call(libc::SYS_rt_sigaction, [signal, 0, 0, 8, 0, 0])
            }
            "unknown-call" => call(1023, [0; 6]),
            "large-file" => {
                let mut file = File::from(self.program.try_clone()?);
                file.write_all(&[0]).and_then(|()| file.set_len(1 << 40))
            }
            "open-files" => {
                let mut open = Vec::new();
                loop {
                    open.push(self.program.try_clone()?);
                }
            }
            _ => Err(io::Error::other(format!("no attempt: {name}"))),
        }
    }

    /// Out of the root by `..`, from every descriptor there is, from the root and from the working directory.
    fn parent(&self) -> io::Result<()> {
        let (up, root) = (CString::new("../../../../..")?, CString::new("/")?);
        let passwd = CString::new("../../../../../etc/passwd")?;
        let path = libc::O_PATH.into();
        let mut last = io::Error::from_raw_os_error(libc::EBADF);
        let open_root = call(
            libc::SYS_openat,
            [libc::AT_FDCWD.into(), address(&root), path, 0, 0, 0],
        );
        let descriptors = (0..64).chain(open_root).chain([libc::AT_FDCWD.into()]);
        for fd in descriptors {
            // Up to the top, and down again from there.
            let top = call(libc::SYS_openat, [fd, address(&up), path, 0, 0, 0]);
            for from in top.into_iter().chain([fd]) {
                match call(libc::SYS_openat, [from, address(&passwd), path, 0, 0, 0]) {
                    Ok(_) => return Ok(()),
                    Err(error) if error.raw_os_error() == Some(libc::EBADF) => {}
                    Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => {}
                    Err(error) => last = error,
                }
            }
        }
        Err(last)
    }
}

/// A thread of the calling one, with a filter of its own.
fn thread_of(role: &'static Role, work: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    let filter = Filter::new(role).map_err(io::Error::other)?;
    thread::scope(|threads| {
        let thread = threads.spawn(move || {
            filter.install().map_err(io::Error::other)?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a panic")))
    })
}

/// So many at once that glibc would look for processors to share memory among, and so much that it would give back.
fn many_threads() -> io::Result<()> {
    let barrier = Barrier::new(40);
    thread::scope(|threads| {
        for _ in 0..40 {
            threads.spawn(|| {
                barrier.wait();
                let pieces: Vec<_> = (0..30u8).map(|n| vec![n; 100_000]).collect();
                barrier.wait();
                drop(pieces);
            });
        }
    });
    Ok(())
}

const ERRNOS: &[(&str, i32)] = &[
    // The call says that it worked.
    ("nothing", 0),
    ("EPERM", libc::EPERM),
    ("ENOENT", libc::ENOENT),
    ("EACCES", libc::EACCES),
    ("EINVAL", libc::EINVAL),
    ("ESRCH", libc::ESRCH),
    ("EROFS", libc::EROFS),
    ("ENOSPC", libc::ENOSPC),
    ("ENOSYS", libc::ENOSYS),
    ("EMFILE", libc::EMFILE),
    ("EFBIG", libc::EFBIG),
    ("ENETUNREACH", libc::ENETUNREACH),
    ("ECONNREFUSED", libc::ECONNREFUSED),
    ("EOPNOTSUPP", libc::EOPNOTSUPP),
];

/// A call that the host is to refuse: `userns` is unshare(2) with a user namespace, alone or among others.
pub(crate) fn refusal(call: &str, errno: &str) -> Result<(i64, Vec<SeccompRule>, u32)> {
    let named = |flag: i32| -> Result<_> {
        let flag = u64::from(flag.cast_unsigned());
        let condition = SeccompCondition::new(
            0,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(flag),
            flag,
        )?;
        Ok(vec![SeccompRule::new(vec![condition])?])
    };
    let (number, rules) = match call {
        "unshare" => (libc::SYS_unshare, Vec::new()),
        "userns" => (libc::SYS_unshare, named(libc::CLONE_NEWUSER)?),
        "netns" => (libc::SYS_unshare, named(libc::CLONE_NEWNET)?),
        "pivot_root" => (libc::SYS_pivot_root, Vec::new()),
        "fsopen" => (libc::SYS_fsopen, Vec::new()),
        "umount2" => (libc::SYS_umount2, Vec::new()),
        "seccomp" => (libc::SYS_seccomp, Vec::new()),
        "landlock" => (libc::SYS_landlock_create_ruleset, Vec::new()),
        _ => return Err(format!("no call: {call}").into()),
    };
    let errno = ERRNOS.iter().find(|(name, _)| *name == errno);
    let (_, errno) = errno.ok_or("no such errno")?;
    Ok((number, rules, u32::try_from(*errno)?))
}
