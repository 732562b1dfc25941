//! New namespaces for the only thread of a process. Unsafe, because unshare(2) is.

use std::fs;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::error::Refusal;
use crate::report::{Part, Report};

/// Those that belong to the user namespace, which comes first.
const KINDS: [(Part, UnshareFlags, &str); 4] = [
    (
        Part::Root,
        UnshareFlags::NEWNS,
        "make a namespace of mounts",
    ),
    (
        Part::Network,
        UnshareFlags::NEWNET,
        "make a namespace of networks",
    ),
    (Part::Ipc, UnshareFlags::NEWIPC, "make a namespace of IPC"),
    (
        Part::HostName,
        UnshareFlags::NEWUTS,
        "make a namespace of host names",
    ),
];
/// What a namespace of host names is for.
const HOST_NAME: &[u8] = b"sandbox";

fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: what makes it unsafe is that a thread may have descriptors of its own (CLONE_FILES), which no caller
    // here asks for.
    unsafe { unshare_unsafe(flags) }
}

/// How many threads the process has.
pub(crate) fn threads() -> usize {
    // Does nothing for the only thread of a process, and is refused where there are more (unshare(2)).
    const THREAD: UnshareFlags = UnshareFlags::from_bits_retain(0x1_0000);
    if unshare(THREAD).is_ok() {
        return 1;
    }
    // Containers refuse the call altogether. Without /proc nobody can tell, and nothing is lost but a clear error.
    fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Moves the process to new namespaces, as many as the host allows; the report says which are missing. Its user and
/// group are the same inside.
pub(crate) fn enter(report: &mut Report) {
    let ids = Ids::own();
    let with_user = match make_all() {
        Ok(()) => Ok(()),
        // One after the other, to learn which is refused. Root needs no user namespace for the others.
        Err(_) => {
            let user = unshare(UnshareFlags::NEWUSER);
            for (part, flag, what) in KINDS {
                if let Err(errno) = unshare(flag) {
                    // Without a user namespace there are no others for ordinary users: that is the reason then.
                    match user {
                        Err(refused) if errno == Errno::PERM => report.miss(part, no_user(refused)),
                        _ => report.miss(part, Refusal::of(what)(errno)),
                    }
                }
            }
            user
        }
    };
    match with_user {
        Ok(()) => report.note(
            Part::UserNamespace,
            ids.map().map_err(Refusal::of("map its user and group")),
        ),
        Err(errno) => report.miss(Part::UserNamespace, no_user(errno)),
    }
    if report.has(Part::HostName) {
        report.note(
            Part::HostName,
            name_host().map_err(Refusal::of("name the sandbox")),
        );
    }
}

/// All of them at once.
pub(crate) fn make_all() -> Result<(), Errno> {
    let all = KINDS.iter().map(|(_, flag, _)| *flag);
    unshare(all.fold(UnshareFlags::NEWUSER, UnshareFlags::union))
}

pub(crate) fn name_host() -> Result<(), Errno> {
    rustix::system::sethostname(HOST_NAME)
}

/// The same numbers inside as outside.
pub(crate) struct Ids {
    uid: String,
    gid: String,
}

impl Ids {
    /// Those that the process has.
    pub(crate) fn own() -> Self {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        Self {
            uid: format!("{uid} {uid} 1"),
            gid: format!("{gid} {gid} 1"),
        }
    }

    /// Who is not root may do so for itself once groups are fixed (user_namespaces(7)).
    pub(crate) fn map(&self) -> Result<(), Errno> {
        let lines = [
            (c"/proc/self/setgroups", "deny"),
            (c"/proc/self/uid_map", &self.uid),
            (c"/proc/self/gid_map", &self.gid),
        ];
        for (path, line) in lines {
            let file = openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::write(file, line.as_bytes())?;
        }
        Ok(())
    }
}

fn no_user(errno: Errno) -> Refusal {
    let cure = match errno {
        Errno::NOSPC => "user.max_user_namespaces (sysctl) allows no more",
        Errno::PERM => {
            "kernel.unprivileged_userns_clone (sysctl), AppArmor, a container's seccomp profile or a chroot forbids it"
        }
        Errno::INVAL | Errno::NOSYS => "the kernel has no CONFIG_USER_NS",
        _ => return Refusal::of("make a user namespace")(errno),
    };
    Refusal::of("make a user namespace")(errno).with_cure(Some(cure))
}
