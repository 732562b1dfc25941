//! What the main thread may call besides where a machine may become two.

use super::numbers::*;
use crate::seccomp::{Call, Rule, Table};

/// Makes processes of a machine that becomes two, and builds one there.
pub(super) const FORKS_TABLE: Table = &[
    Rule::masked(
        Call::Unshare,
        0,
        u32::MAX,
        &[CLONE_THREAD],
        "whether it is the only thread; changes nothing",
    ),
    Rule::masked(
        Call::Clone,
        0,
        !OF_FORK,
        &[0],
        "a process with the same rights and a copy of memory",
    ),
    Rule::any(Call::Fork, "the same, with musl"),
    Rule::any(Call::SetTidAddress, "the number of its thread, with musl"),
    Rule::any(Call::Wait4, "how such a process ends"),
    Rule::any(Call::PidfdOpen, "that it ends"),
    Rule::any(Call::Setsid, "no signals of its parent's terminal"),
    Rule::any(Call::CloseRange, "nothing of its parent's machine"),
    Rule::any(Call::Pipe2, "whether its guest runs"),
    Rule::one_of(
        Call::Ioctl,
        1,
        &[TUNGETIFF, TUNSETVNETHDRSZ],
        "a tap device of its own",
    ),
    Rule::any(Call::Listen, "its control socket"),
    Rule::any(Call::Getsockname, "whether that is one"),
    Rule::fails(
        Call::IoUringSetup,
        ENOSYS,
        "what a ring does no filter sees: its disks do without",
    ),
    Rule::one_of(
        Call::RtSigaction,
        0,
        &[SIGINT, SIGTERM, SIGHUP, SIGCONT, SIGQUIT, SIGTSTP, SIGWINCH],
        "its own handlers of signals",
    ),
];
