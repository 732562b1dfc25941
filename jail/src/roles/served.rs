//! The threads of a monitor that others configure by requests: they name files while it runs, and it opens them. The
//! thread that answers them may do that, and no other one. Its vCPUs and devices have the roles of any monitor.

use super::numbers::*;
use super::opening::API_TABLE;
use super::tables::{BASE, CONTROL_TABLE, EVENTS, NOTIFY_TABLE};
use super::{MAIN_OF_SERVED, role};
use crate::seccomp::{Call, Role, Rule, Table};

/// The thread that answers requests.
pub const API: Role = role("api", &[BASE, EVENTS, CONTROL_TABLE, API_TABLE]);
/// The thread that writes metrics, and tells of signals that end the process.
pub const CLOCK: Role = role("clock", &[BASE, EVENTS, NOTIFY_TABLE]);
/// The thread that runs the machine, from when it does so: nothing is opened by it then.
pub const RUNNING: Role = MAIN_OF_SERVED;
/// What a violation calls the thread that prepares all this, with [`REFUSED`] and [`REFUSED_BUT`].
pub const START: &str = "start";
/// What no thread of such a monitor does at any time. The one that unpacks kernels and builds machines opens and asks for
/// what no table has, and goes on when that fails; with this it does the worst things nevertheless not.
pub const REFUSED: &[Call] = &[
    Call::Adjtimex,
    Call::Bpf,
    Call::Capset,
    Call::Chroot,
    Call::ClockAdjtime,
    Call::ClockSettime,
    Call::DeleteModule,
    Call::Execve,
    Call::Execveat,
    Call::FinitModule,
    Call::Fsconfig,
    Call::Fsmount,
    Call::Fsopen,
    Call::Fspick,
    Call::InitModule,
    Call::KexecFileLoad,
    Call::KexecLoad,
    Call::Keyctl,
    Call::Kill,
    Call::Mknod,
    Call::Mknodat,
    Call::Mount,
    Call::MountSetattr,
    Call::MoveMount,
    Call::NameToHandleAt,
    Call::OpenByHandleAt,
    Call::OpenTree,
    Call::PerfEventOpen,
    Call::PidfdGetfd,
    Call::PidfdSendSignal,
    Call::PivotRoot,
    Call::ProcessVmReadv,
    Call::ProcessVmWritev,
    Call::Ptrace,
    Call::Quotactl,
    Call::Reboot,
    Call::RtSigqueueinfo,
    Call::RtTgsigqueueinfo,
    Call::Setgid,
    Call::Setgroups,
    Call::Setns,
    Call::Setregid,
    Call::Setresgid,
    Call::Setresuid,
    Call::Setreuid,
    Call::Settimeofday,
    Call::Setuid,
    Call::Swapon,
    Call::Syslog,
    Call::Umount2,
    Call::Vfork,
];
/// What such a monitor does of other calls: with other arguments they are refused as those of [`REFUSED`] are.
pub const REFUSED_BUT: Table = &[
    Rule::one_of(
        Call::Unshare,
        0,
        &[CLONE_THREAD],
        "whether it is the only thread, before a machine becomes two: no namespaces",
    ),
    Rule::masked(
        Call::Clone,
        0,
        NAMESPACES,
        &[0],
        "threads and processes, without namespaces of their own",
    ),
    // It has its flags in memory, where no filter can look: C libraries take clone then.
    Rule::fails(Call::Clone3, ENOSYS, "whether it is without namespaces"),
    Rule::one_of(
        Call::Tkill,
        1,
        TO_ITSELF,
        "signals to a thread of its own, with musl",
    ),
    Rule::one_of(Call::Tgkill, 2, TO_ITSELF, "signals to a thread of its own"),
];
/// The signals that threads of this process get from others of it: a vCPU leaves the guest, job control, an abort.
const TO_ITSELF: &[u32] = &[KICK_GLIBC, KICK_MUSL, SIGABRT, SIGQUIT, SIGSTOP, SIGTSTP];
/// The roles that such a monitor has alone.
pub const ALL: &[Role] = &[API, CLOCK];
