//! Each thread of a VM in its sandbox, from outside: what it has given up, what it may not call, and that it sleeps.
//!
//! Calls are put into the threads of a VM that runs, so that what is tried are the filters that they really have.
//! What the tables of filters say otherwise, jail/tests tries.

#![allow(clippy::unwrap_used)]
#![cfg(target_arch = "x86_64")]

mod common;

use std::collections::BTreeMap;
use std::ffi::c_long;
use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::tracer::{Stopped, Tried};
use common::trial::Spawned;
use common::{Ended, binary, kernel, option, print, signal};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tempfile::{NamedTempFile, TempDir};

/// `hlt`, again and again, without interrupts: the vCPU sleeps.
const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];

/// Whether a VM may have a network without interfaces for its tap.
fn is_root() -> bool {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        eprintln!("SKIPPED: only root has a network of its own");
    }
    root
}

/// A VM with a thread of every kind that lasts, whose guest has printed something and sleeps.
struct Everything {
    vm: Spawned,
    _folder: TempDir,
    _kernel: NamedTempFile,
    _keyboard: OwnedFd,
    _manager: UnixDatagram,
}

/// What asks a VM for something besides its guest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum With {
    Nothing,
    /// Commands, and a service manager that wants signs of life.
    Control,
}

impl Everything {
    fn start(with: With) -> Self {
        Self::start_with(with, &[])
    }

    fn start_with(with: With, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let image = kernel(&[print("up"), HALT.to_vec()].concat());
        fs::write(path("disk"), [0; 4096]).unwrap();
        let manager = UnixDatagram::bind(path("manager")).unwrap();
        let (keyboard, screen) = terminal();
        let mut command = Command::new("unshare");
        command.arg("--net").arg(binary()).args([
            option("kernel", image.path()),
            option("blk", path("disk")),
            "--net=tap=t0".to_owned(),
            format!("--vsock=cid=3,path={}", path("vsock").display()),
            option("console=file", path("console")),
            "--balloon".to_owned(),
            "--serial=stdio".to_owned(),
        ]);
        let is_off = more.contains(&"--sandbox=off");
        if !is_off {
            command.arg("--sandbox=strict");
        }
        command.args(more);
        if with == With::Control {
            command.arg(option("control", path("control")));
            command.env("NOTIFY_SOCKET", path("manager"));
            command.env("WATCHDOG_USEC", "600000000");
            command.env_remove("WATCHDOG_PID");
        }
        command.stdin(Stdio::from(screen));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut vm = Spawned::new(command.spawn().unwrap());
        common::read_until(vm.child_mut().stdout.as_mut().unwrap(), "up");
        let everything = Self {
            vm,
            _folder: folder,
            _kernel: image,
            _keyboard: keyboard,
            _manager: manager,
        };
        // They begin beside the guest.
        let seccomp = if is_off { "0" } else { "2" };
        let has_begun = |(name, one): &(String, Thread)| {
            name != "vmm-reference"
                && field(&one.status, "State:").starts_with('S')
                && field(&one.status, "Seccomp:") == seccomp
        };
        while !everything.all_threads().iter().all(has_begun) {
            thread::sleep(Duration::from_millis(1));
        }
        everything
    }

    fn process(&self) -> u32 {
        self.vm.child().id()
    }

    /// By their names.
    fn threads(&self) -> BTreeMap<String, Thread> {
        let threads = self.all_threads();
        let count = threads.len();
        let threads: BTreeMap<_, _> = threads.into_iter().collect();
        assert_eq!(threads.len(), count, "{:?}", threads.keys());
        threads
    }

    /// With their names, which they get as they begin.
    fn all_threads(&self) -> Vec<(String, Thread)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process())).unwrap();
        let statuses = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")));
        let named = |status: String| {
            let id = field(&status, "Pid:").parse().unwrap();
            let name = match field(&status, "Name:") {
                _ if id == self.process() => "main",
                // What KVM and io_uring do in the process' name, the kernel does.
                name if name.starts_with("kvm-") || name.starts_with("iou-") => return None,
                name => name,
            };
            Some((name.to_owned(), Thread { id, status }))
        };
        statuses.filter_map(|status| named(status.ok()?)).collect()
    }

    /// What is open.
    fn open(&self) -> Vec<PathBuf> {
        let folder = format!("/proc/{}/fd", self.process());
        let entries = fs::read_dir(folder).unwrap();
        let target = |entry: std::io::Result<fs::DirEntry>| fs::read_link(entry.unwrap().path());
        entries.filter_map(|entry| target(entry).ok()).collect()
    }

    fn end(self) -> Ended {
        signal(self.vm.child(), "INT");
        self.vm.finish()
    }
}

struct Thread {
    id: u32,
    status: String,
}

/// The two sides of a pseudo-terminal.
fn terminal() -> (OwnedFd, File) {
    let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&keyboard).unwrap();
    unlockpt(&keyboard).unwrap();
    let path = ptsname(&keyboard, Vec::new()).unwrap();
    let path = PathBuf::from(path.into_string().unwrap());
    let screen = OpenOptions::new().read(true).write(true).open(path);
    (keyboard, screen.unwrap())
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
}

/// The threads of such a VM without commands, and the roles that their filters are of.
const THREADS: [(&str, &str); 9] = [
    ("main", "main"),
    ("terminal", "terminal"),
    ("vcpu0", "vcpu"),
    ("virtio-balloon", "virtio-balloon"),
    ("virtio-blk", "virtio-blk"),
    ("virtio-console", "virtio-console"),
    ("virtio-net", "virtio-net"),
    ("virtio-rng", "virtio-rng"),
    ("virtio-vsock", "virtio-vsock"),
];

/// And those of one with commands.
const WITH_CONTROL: [(&str, &str); 11] = [
    ("control", "control"),
    ("main", "main with forks"),
    ("notify", "notify"),
    ("terminal", "terminal"),
    ("vcpu0", "vcpu"),
    ("virtio-balloon", "virtio-balloon"),
    ("virtio-blk", "virtio-blk"),
    ("virtio-console", "virtio-console"),
    ("virtio-net", "virtio-net"),
    ("virtio-rng", "virtio-rng"),
    ("virtio-vsock", "virtio-vsock"),
];

/// What no thread may call, with the arguments that a filter looks at. Paths are null pointers: the kernel asks the filter
/// before it reads them.
const NEVER: &[(c_long, &[u64])] = &[
    (libc::SYS_open, &[]),
    (libc::SYS_openat, &[]),
    (libc::SYS_openat2, &[]),
    (libc::SYS_open_by_handle_at, &[]),
    (libc::SYS_creat, &[]),
    (libc::SYS_execve, &[]),
    (libc::SYS_execveat, &[]),
    (libc::SYS_mount, &[]),
    (libc::SYS_umount2, &[]),
    (libc::SYS_move_mount, &[]),
    (libc::SYS_open_tree, &[]),
    (libc::SYS_fsopen, &[]),
    (libc::SYS_pivot_root, &[]),
    (libc::SYS_chroot, &[]),
    (libc::SYS_setns, &[]),
    (libc::SYS_unshare, &[CLONE_NEWUSER]),
    (libc::SYS_kill, &[1, SIGKILL]),
    (libc::SYS_tgkill, &[1, 1, SIGKILL]),
    (libc::SYS_tkill, &[1, SIGKILL]),
    (libc::SYS_rt_sigqueueinfo, &[1, SIGKILL]),
    (libc::SYS_pidfd_send_signal, &[0, SIGKILL]),
    (libc::SYS_ptrace, &[PTRACE_SEIZE, 1]),
    (libc::SYS_process_vm_readv, &[1]),
    (libc::SYS_process_vm_writev, &[1]),
    (libc::SYS_pidfd_getfd, &[]),
    (libc::SYS_bpf, &[]),
    (libc::SYS_perf_event_open, &[]),
    (libc::SYS_init_module, &[]),
    (libc::SYS_finit_module, &[]),
    (libc::SYS_kexec_load, &[]),
    (libc::SYS_keyctl, &[]),
    (libc::SYS_add_key, &[]),
    (libc::SYS_userfaultfd, &[0]),
    (libc::SYS_socket, &[AF_INET]),
    (libc::SYS_socket, &[AF_NETLINK]),
    (libc::SYS_socket, &[AF_PACKET]),
    (libc::SYS_bind, &[]),
    (libc::SYS_setuid, &[0]),
    (libc::SYS_setresuid, &[]),
    (libc::SYS_capset, &[]),
    (libc::SYS_prctl, &[PR_SET_DUMPABLE, 1]),
    (libc::SYS_mprotect, &[0, 4096, PROT_EXEC]),
    (libc::SYS_mmap, &[0, 4096, PROT_EXEC, MAP_ANONYMOUS]),
    (libc::SYS_ioctl, &[0, TIOCSTI]),
    (libc::SYS_ioctl, &[0, TUNSETIFF]),
    (libc::SYS_rename, &[]),
    (libc::SYS_link, &[]),
    (libc::SYS_symlink, &[]),
    (libc::SYS_truncate, &[]),
    (libc::SYS_chmod, &[]),
    (libc::SYS_chown, &[]),
    (libc::SYS_mknod, &[]),
    (libc::SYS_vfork, &[]),
    (libc::SYS_splice, &[]),
    (libc::SYS_modify_ldt, &[]),
    (libc::SYS_arch_prctl, &[]),
    (libc::SYS_iopl, &[3]),
];

/// What makes a process.
const PROCESSES: &[(c_long, &[u64])] = &[(libc::SYS_fork, &[]), (libc::SYS_clone, &[SIGCHLD])];

const CLONE_NEWUSER: u64 = libc::CLONE_NEWUSER.cast_unsigned() as u64;
const SIGKILL: u64 = libc::SIGKILL.cast_unsigned() as u64;
const SIGCHLD: u64 = libc::SIGCHLD.cast_unsigned() as u64;
const PTRACE_SEIZE: u64 = libc::PTRACE_SEIZE as u64;
const AF_UNIX: u64 = libc::AF_UNIX.cast_unsigned() as u64;
const AF_INET: u64 = libc::AF_INET.cast_unsigned() as u64;
const AF_NETLINK: u64 = libc::AF_NETLINK.cast_unsigned() as u64;
const AF_PACKET: u64 = libc::AF_PACKET.cast_unsigned() as u64;
const PR_SET_DUMPABLE: u64 = libc::PR_SET_DUMPABLE.cast_unsigned() as u64;
const PROT_EXEC: u64 = libc::PROT_EXEC.cast_unsigned() as u64;
const MAP_ANONYMOUS: u64 = (libc::MAP_ANONYMOUS | libc::MAP_PRIVATE).cast_unsigned() as u64;
// C libraries do not agree on the type of an ioctl's number: these are from include/uapi of Linux,
// asm-generic/ioctls.h, linux/if_tun.h and linux/kvm.h.
const TIOCSTI: u64 = 0x5412;
const TUNSETIFF: u64 = 0x4004_54ca;
const KVM_CREATE_VM: u64 = 0xae01;

#[test]
fn every_thread_has_given_up_what_it_can() {
    if !is_root() {
        return;
    }
    let vm = Everything::start(With::Control);
    let threads = vm.threads();
    let expected = WITH_CONTROL.map(|(name, _)| name);
    assert!(threads.keys().eq(&expected), "{:?}", threads.keys());
    for (name, thread) in &threads {
        // Its own, and that of the thread that started it.
        let filters = if name == "main" { "1" } else { "2" };
        for (field_name, value) in [
            ("Seccomp:", "2"),
            ("Seccomp_filters:", filters),
            ("NoNewPrivs:", "1"),
            ("CapInh:", "0000000000000000"),
            ("CapPrm:", "0000000000000000"),
            ("CapEff:", "0000000000000000"),
            ("CapBnd:", "0000000000000000"),
            ("CapAmb:", "0000000000000000"),
        ] {
            let status = &thread.status;
            assert_eq!(field(status, field_name), value, "{name}: {status}");
        }
    }
}

#[test]
fn what_is_put_into_a_thread_of_a_vm_is_refused_by_its_filter() {
    if !is_root() {
        return;
    }
    for (with, roles) in [
        (With::Nothing, &THREADS[..]),
        (With::Control, &WITH_CONTROL),
    ] {
        let vm = Everything::start(with);
        let threads = vm.threads();
        let names = roles.iter().map(|(name, _)| *name);
        assert!(threads.keys().eq(names), "{:?}", threads.keys());
        for (name, thread) in &threads {
            let stopped = Stopped::new(vm.process(), thread.id);
            let tried = |(call, arguments): (c_long, &[u64])| stopped.attempt(call, arguments);
            for &one in NEVER {
                assert_eq!(tried(one), Tried::Refused, "{name}: {one:?}");
            }
            // Sockets are for the guest's connections to programs of the host; the main thread makes all threads, and may
            // what they may.
            let connects = ["main", "virtio-vsock"].contains(&&**name);
            for one in [
                (libc::SYS_socket, &[AF_UNIX][..]),
                (libc::SYS_connect, &[u64::MAX]),
            ] {
                assert_eq!(tried(one) != Tried::Refused, connects, "{name}: {one:?}");
            }
            // Nor is there a VM to be had: it would take /dev/kvm.
            let created = tried((libc::SYS_ioctl, &[u64::MAX, KVM_CREATE_VM]));
            assert_eq!(created != Tried::Refused, name == "main", "{name}");
            // A process that is made would go on with what it was made for, so the one that may make it is not asked to.
            if with == With::Nothing || name != "main" {
                for &one in PROCESSES {
                    assert_eq!(tried(one), Tried::Refused, "{name}: {one:?}");
                }
            }
        }
        // It was none the worse for it.
        assert_eq!(vm.end().status.code(), Some(0));
    }
}

#[test]
fn a_thread_that_was_taken_over_ends_the_vm_and_is_named() {
    if !is_root() {
        return;
    }
    let calls = [
        (libc::SYS_openat, "openat", &[][..]),
        (libc::SYS_execve, "execve", &[]),
        (libc::SYS_mount, "mount", &[]),
        (libc::SYS_kill, "kill", &[1, SIGKILL]),
        (libc::SYS_socket, "socket", &[AF_INET]),
        (libc::SYS_ptrace, "ptrace", &[PTRACE_SEIZE, 1]),
        (libc::SYS_bpf, "bpf", &[]),
        (libc::SYS_bind, "bind", &[]),
    ];
    for (with, roles) in [
        (With::Nothing, &THREADS[..]),
        (With::Control, &WITH_CONTROL),
    ] {
        for (number, (name, role)) in roles.iter().enumerate() {
            // Each with one of them: that all are refused, another test says.
            let (call, called, arguments) = calls[number % calls.len()];
            let vm = Everything::start(with);
            let stopped = Stopped::new(vm.process(), vm.threads()[*name].id);
            stopped.go_on_with(call, arguments);
            let ended = vm.vm.finish();
            assert_eq!(ended.status.code(), Some(1), "{name}: {called}: {ended:?}");
            assert_eq!(
                ended.stderr,
                format!(
                    "error: the system call {called} is not allowed to the thread '{role}': the program ends, since it \
                     has a fault or somebody has taken it over\n"
                )
            );
        }
    }
}

/// Whether /dev/kvm is open in it.
fn has_kvm(vm: &Everything) -> bool {
    let open = vm.open();
    // It is still among those that are seen.
    assert!(open.iter().any(|path| path.ends_with("disk")), "{open:?}");
    open.iter().any(|path| path == Path::new("/dev/kvm"))
}

#[test]
fn who_makes_no_other_machine_has_no_dev_kvm() {
    if !is_root() {
        return;
    }
    let alone = Everything::start(With::Nothing);
    assert!(!has_kvm(&alone));
    alone.end();
    // A reset or a fork may be asked for.
    assert!(has_kvm(&Everything::start(With::Control)));
    // The guest starts itself again.
    let again = Everything::start_with(With::Nothing, &["--on-reboot=restart"]);
    assert!(has_kvm(&again));
    // And the sandbox has nothing to do with it.
    assert!(!has_kvm(&Everything::start_with(
        With::Nothing,
        &["--sandbox=off"]
    )));
}

/// How often a thread gave up its processor.
fn switches(status: &str) -> u64 {
    ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"]
        .map(|name| field(status, name).parse::<u64>().unwrap())
        .iter()
        .sum()
}

#[test]
fn a_vm_whose_guest_sleeps_sleeps() {
    if !is_root() {
        return;
    }
    let vm = Everything::start(With::Control);
    let seen = || {
        let threads = vm.threads();
        let counts = threads
            .iter()
            .map(|(name, one)| (name.clone(), switches(&one.status)));
        counts.collect::<BTreeMap<_, _>>()
    };
    // A console looks again soon after its guest has printed something, and on a busy host the guest sleeps later. Who
    // wakes up by the clock does so in each of these times.
    let mut before = seen();
    for _ in 0..10 {
        thread::sleep(Duration::from_secs(2));
        let now = seen();
        if now == before {
            return;
        }
        before = now;
    }
    panic!("a thread woke up in each of these times: {before:?}");
}
