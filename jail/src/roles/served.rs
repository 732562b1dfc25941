//! The threads of a monitor that others configure by requests: they name files while it runs, and it opens them. The
//! thread that answers them may do that, and no other one. Its vCPUs and devices have the roles of any monitor.

use super::opening::API_TABLE;
use super::tables::{BASE, CONTROL_TABLE, EVENTS, NOTIFY_TABLE};
use super::{MAIN_OF_SERVED, role};
use crate::seccomp::{Call, Role};

/// The thread that answers requests.
pub const API: Role = role("api", &[BASE, EVENTS, CONTROL_TABLE, API_TABLE]);
/// The thread that writes metrics, and tells of signals that end the process.
pub const CLOCK: Role = role("clock", &[BASE, EVENTS, NOTIFY_TABLE]);
/// The thread that runs the machine, from when it does so: nothing is opened by it then.
pub const RUNNING: Role = MAIN_OF_SERVED;
/// What a violation calls the thread that prepares all this, with [`REFUSED`].
pub const START: &str = "start";
/// What no thread of such a monitor does at any time. The one that unpacks kernels and builds machines opens and asks for
/// what no table has, and goes on when that fails; with this it does the worst things nevertheless not.
pub const REFUSED: &[Call] = &[
    Call::Bpf,
    Call::Chroot,
    Call::ClockSettime,
    Call::Execve,
    Call::Execveat,
    Call::FinitModule,
    Call::Fsmount,
    Call::Fsopen,
    Call::InitModule,
    Call::KexecLoad,
    Call::Keyctl,
    Call::Kill,
    Call::Mknod,
    Call::Mount,
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
    Call::Setns,
    Call::Setresuid,
    Call::Setuid,
    Call::Swapon,
    Call::Syslog,
    Call::Umount2,
    Call::Vfork,
];
/// The roles that such a monitor has alone.
pub const ALL: &[Role] = &[API, CLOCK];
