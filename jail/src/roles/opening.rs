//! What a thread may call that opens files and tap devices while a machine runs, since others name some by requests.

use super::numbers::*;
use crate::seccomp::{Call, Rule, Table};

/// Opens what requests name, and writes a machine to files.
pub(super) const API_TABLE: Table = &[
    Rule::any(
        Call::Openat,
        "kernels, disks, tap devices, logs, saved machines",
    ),
    Rule::any(Call::Open, "the same, with musl"),
    Rule::any(Call::Fstat, "what a file is"),
    Rule::any(Call::Lseek, "holes of files of memory; the end of a file"),
    Rule::any(Call::Pread64, "files of memory that are merged"),
    Rule::any(Call::Pwrite64, "the same"),
    Rule::any(
        Call::MemfdCreate,
        "a state that is written in place, before it is put there",
    ),
    Rule::any(Call::Ftruncate, "the size of a new file"),
    Rule::any(
        Call::Fsync,
        "a new file is on the disk before it is said to be",
    ),
    Rule::any(Call::Fdatasync, "the same"),
    Rule::any(
        Call::Fchown,
        "a new file has the owner of the one that it replaces",
    ),
    Rule::any(Call::Fchmod, "and its mode"),
    Rule::any(
        Call::Fgetxattr,
        "the mark by which a state knows its memory",
    ),
    Rule::any(Call::Fsetxattr, "the same"),
    Rule::any(Call::Fremovexattr, "the same"),
    Rule::one_of(
        Call::Ioctl,
        1,
        &[FICLONE],
        "a copy of a file of memory, where the file system can",
    ),
    Rule::any(
        Call::Geteuid,
        "whether a state that waits for its place is its own",
    ),
    Rule::any(Call::Linkat, "a new file gets its name"),
    Rule::any(Call::Renameat2, "a new file takes its place"),
    Rule::any(Call::Readlink, "what a path leads to"),
    Rule::any(Call::Readlinkat, "the same, where there is no readlink"),
    Rule::any(Call::Getcwd, "where relative paths begin"),
    Rule::any(Call::Getdents64, "who else has a file open"),
    Rule::one_of(
        Call::Socket,
        0,
        &[AF_UNIX],
        "a vsock device's socket; a handler of page faults; to ask of network interfaces",
    ),
    Rule::any(Call::Shutdown, "the end of a connection"),
    Rule::any(Call::Bind, "a vsock device's socket"),
    Rule::any(Call::Listen, "the same"),
    Rule::any(Call::Connect, "a handler of page faults"),
    Rule::one_of(
        Call::Ioctl,
        1,
        &[TUNSETIFF, TUNGETIFF, TUNSETVNETHDRSZ],
        "a tap device",
    ),
    Rule::one_of(
        Call::Ioctl,
        1,
        &[
            SIOCGIFINDEX,
            SIOCGIFFLAGS,
            SIOCSIFFLAGS,
            SIOCGIFHWADDR,
            SIOCETHTOOL,
        ],
        "whether there is one, and why it is refused",
    ),
    Rule::one_of(
        Call::Ioctl,
        1,
        &[TCGETS, TCGETS2, TIOCGPGRP, TIOCGWINSZ],
        "whether stdin and stdout are this job's",
    ),
    Rule::any(Call::Getpgid, "the same"),
    Rule::any(Call::Getpgrp, "the same"),
    Rule::any(Call::TimerfdCreate, "the pace of the metadata service"),
    Rule::any(
        Call::Getrandom,
        "names of new files; numbers of connections",
    ),
];
