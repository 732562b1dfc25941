//! What threads may call, by purpose: a line a call, with the reason for it.

use super::numbers::*;
use crate::seccomp::{Call, Rule, Table};

/// What every thread of a program does: memory, locks, its own end, and the line of a violation.
pub(super) const BASE: Table = &[
    Rule::any(
        Call::Write,
        "events of others; messages; the line of a violation",
    ),
    Rule::any(Call::Writev, "messages, with musl"),
    Rule::any(Call::Read, "events"),
    Rule::any(Call::Close, "what it owns"),
    Rule::any(Call::Futex, "locks and channels"),
    Rule::any(Call::Exit, "its end"),
    Rule::any(
        Call::ExitGroup,
        "the end of the process, also by a violation",
    ),
    Rule::one_of(
        Call::Ioctl,
        1,
        &[TCSETS, TCSETS2],
        "the terminal's mode before, when the process ends by a violation or by lost memory",
    ),
    Rule::any(Call::RtSigreturn, "the way back from a signal's handler"),
    Rule::one_of(
        Call::RtSigaction,
        0,
        &[SIGBUS, SIGSEGV],
        "Rust's handler of a fault lets the next one end the process",
    ),
    Rule::any(Call::RtSigprocmask, "the end of a thread"),
    Rule::any(Call::Sigaltstack, "begin and end of a thread"),
    Rule::any(
        Call::RestartSyscall,
        "a wait that a stop and SIGCONT interrupted",
    ),
    Rule::any(
        Call::ClockGettime,
        "the processor time of a thread; other clocks, without a vDSO",
    ),
    Rule::any(
        Call::ClockNanosleep,
        "a pause, where the host refuses something for a moment",
    ),
    Rule::any(Call::Nanosleep, "the same, with musl"),
    Rule::any(Call::Gettid, "locks that know their owner"),
    Rule::any(Call::SchedYield, "locks that spin"),
    Rule::any(Call::Brk, "memory"),
    Rule::masked(
        Call::Mmap,
        2,
        PROT_EXEC,
        &[0],
        "memory, never to be executed",
    ),
    Rule::masked(
        Call::Mprotect,
        2,
        PROT_EXEC,
        &[0],
        "memory, never to be executed",
    ),
    Rule::any(Call::Mremap, "memory that grows"),
    Rule::any(Call::Munmap, "memory; stacks of threads that ended"),
    Rule::one_of(
        Call::Madvise,
        2,
        &[
            MADV_NORMAL,
            MADV_DONTNEED,
            MADV_FREE,
            MADV_REMOVE,
            MADV_DONTDUMP,
            MADV_GUARD_INSTALL,
            MADV_GUARD_REMOVE,
        ],
        "stacks of threads; pages of the guest that a balloon gives back",
    ),
    Rule::one_of(
        Call::Fcntl,
        1,
        &[F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC],
        "copies of events; checks of a debug build; what blocks",
    ),
];

/// Waiting for events.
pub(super) const EVENTS: Table = &[
    Rule::any(Call::EpollWait, "events, with glibc"),
    Rule::any(Call::EpollPwait, "events"),
    Rule::any(Call::EpollCtl, "what it waits for"),
    Rule::any(Call::Poll, "events of a few, with musl"),
    Rule::any(Call::Ppoll, "events of a few"),
    Rule::any(
        Call::TimerfdSettime,
        "limits of a device; pace of a console",
    ),
];

/// A vCPU: what the guest does to registers of devices, it does on the vCPU's thread.
pub(super) const VCPU_TABLE: Table = &[
    Rule::one_of(
        Call::Ioctl,
        1,
        &[
            KVM_RUN,
            KVM_KVMCLOCK_CTRL,
            KVM_GET_REGS,
            KVM_GET_SREGS,
            KVM_GET_ONE_REG,
        ],
        "the guest runs; it learns of a pause; registers for the report of a crash",
    ),
    Rule::one_of(
        Call::Ioctl,
        1,
        &[KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD, KVM_IRQ_LINE],
        "interrupts and doorbells of a device that its driver sets up or resets",
    ),
    Rule::one_of(
        Call::Ioctl,
        1,
        &[TUNSETOFFLOAD, TUNSETQUEUE],
        "a driver of a network device begins or ends, and which of its queues it uses",
    ),
    Rule::any(
        Call::IoUringEnter,
        "a reset waits for the requests of a disk",
    ),
    Rule::any(
        Call::TimerfdSettime,
        "a driver of a balloon begins, which is asked again and again",
    ),
];

pub(super) const BLOCK_TABLE: Table = &[
    Rule::any(Call::IoUringEnter, "requests"),
    Rule::any(Call::Preadv, "requests, without io_uring"),
    Rule::any(Call::Pwritev, "requests, without io_uring"),
    Rule::any(Call::Pread64, "requests with one buffer"),
    Rule::any(Call::Pwrite64, "requests with one buffer"),
    Rule::any(Call::Fdatasync, "a flush"),
    Rule::one_of(
        Call::Fallocate,
        1,
        &[PUNCH_HOLE, ZERO_RANGE],
        "what a driver erases",
    ),
    Rule::any(Call::Flock, "the lock of another file behind the disk"),
    Rule::one_of(
        Call::Fcntl,
        1,
        &[F_OFD_GETLK, F_OFD_SETLK],
        "the lock that QEMU sees",
    ),
    Rule::any(Call::Lseek, "the size of another file behind the disk"),
    Rule::any(Call::Fstat, "what another file behind the disk is"),
    Rule::any(Call::Statx, "what another file behind the disk is"),
    Rule::any(Call::MemfdCreate, "zeros for the rest of its last sector"),
    Rule::any(Call::Ftruncate, "the same"),
    Rule::one_of(
        Call::Ioctl,
        1,
        &[BLKSSZGET, BLKROGET],
        "the blocks of a device",
    ),
];

pub(super) const NET_TABLE: Table = &[
    Rule::any(Call::Readv, "frames for the guest"),
    Rule::any(Call::Writev, "frames of the guest"),
    Rule::one_of(
        Call::Ioctl,
        1,
        &[TUNSETOFFLOAD, TUNSETQUEUE],
        "which queues a driver uses, and what it computes itself",
    ),
];

pub(super) const VSOCK_TABLE: Table = &[
    Rule::any(Call::Accept4, "programs of the host that connect"),
    Rule::one_of(
        Call::Socket,
        0,
        &[AF_UNIX],
        "the guest connects to a program of the host",
    ),
    Rule::any(
        Call::Connect,
        "the same; the kernel knows the family of the socket",
    ),
    Rule::any(Call::Recvfrom, "data"),
    Rule::any(Call::Sendto, "data"),
    Rule::any(Call::Shutdown, "one side has said everything"),
    Rule::any(Call::Getsockopt, "whether a connection came about"),
    Rule::one_of(Call::Ioctl, 1, &[FIONBIO], "sockets that do not block"),
];

pub(super) const BALLOON_TABLE: Table = &[
    Rule::one_of(
        Call::Fallocate,
        1,
        &[PUNCH_HOLE],
        "pages of shared memory that are given back",
    ),
    Rule::any(Call::Fstat, "the size of a huge page"),
];

pub(super) const RNG_TABLE: Table = &[Rule::any(Call::Getrandom, "random bytes for the guest")];

/// Writes a machine to files.
pub(super) const SAVING_TABLE: Table = &[
    Rule::any(Call::Pwrite64, "memory of the guest"),
    Rule::any(Call::Pread64, "whether what is there is the same"),
    Rule::any(Call::Lseek, "holes of files"),
    Rule::any(Call::Ftruncate, "the size of the file"),
    Rule::any(
        Call::Fdatasync,
        "the file is on the disk before it is said to be",
    ),
    Rule::any(Call::Fsync, "the same"),
    Rule::any(Call::Fstat, "what the file is"),
    Rule::any(Call::Statx, "what the file is"),
    Rule::one_of(
        Call::Ioctl,
        1,
        &[PAGEMAP_SCAN, FICLONE],
        "which pages were written; the copy of a disk, where the file system can",
    ),
];

/// Asks a process outside for pages of a restored machine, and watches it.
pub(super) const PAGES_TABLE: Table = &[
    Rule::any(Call::Sendmsg, "the descriptor by which it brings pages"),
    Rule::any(Call::Recvfrom, "whether it is still there"),
    Rule::any(Call::Pread64, "whether somebody waits for a page"),
    Rule::one_of(
        Call::Ioctl,
        1,
        &[UFFDIO_WAKE],
        "threads wait for a page that nobody brings any more",
    ),
];

/// Clients of the control socket.
pub(super) const CONTROL_TABLE: Table = &[
    Rule::any(Call::Accept4, "clients"),
    Rule::any(Call::Getsockopt, "who they are"),
    Rule::any(Call::Getpid, "whether they are this process"),
    Rule::any(Call::Recvmsg, "requests, with descriptors"),
    Rule::any(Call::Recvfrom, "requests"),
    Rule::any(Call::Sendmsg, "answers and events"),
    Rule::any(Call::Sendto, "the same"),
    Rule::any(Call::Eventfd2, "the answer to a command"),
    Rule::one_of(Call::Ioctl, 1, &[FIONBIO], "clients that do not block it"),
    Rule::any(Call::Statx, "whether the socket's file is its own"),
    Rule::any(Call::Newfstatat, "the same"),
    Rule::any(Call::Lstat, "the same, with musl"),
    Rule::any(Call::Stat, "the same, with musl"),
    Rule::any(Call::Unlink, "the socket's file, at the end"),
    Rule::any(Call::Unlinkat, "the same, where there is no unlink"),
];

/// Raises lines of an interrupt chip, where KVM's own way (KVM_IRQFD) leaves them raised.
pub(super) const LINES_TABLE: Table = &[
    Rule::any(Call::EpollWait, "events of devices, with glibc"),
    Rule::any(Call::EpollPwait, "events of devices"),
    Rule::one_of(Call::Ioctl, 1, &[KVM_IRQ_LINE], "an edge on a line"),
];

/// Follows the signals of job control.
pub(super) const TERMINAL_TABLE: Table = &[
    Rule::any(
        Call::Sendto,
        "handlers of signals, which run on this thread and the main one, tell of them through a pipe",
    ),
    Rule::any(Call::Recvfrom, "signals, through a pipe"),
    Rule::one_of(
        Call::Ioctl,
        1,
        &[TCGETS, TCGETS2, TCSETS, TCSETS2, TIOCGPGRP, TIOCGWINSZ],
        "raw mode and the mode before; whether it is this process' turn",
    ),
    Rule::one_of(
        Call::RtSigaction,
        0,
        &[SIGQUIT, SIGTSTP],
        "they do what they do to any program",
    ),
    Rule::one_of(Call::Tgkill, 2, &[SIGQUIT, SIGSTOP, SIGTSTP], "the same"),
    Rule::one_of(
        Call::Tkill,
        1,
        &[SIGQUIT, SIGSTOP, SIGTSTP],
        "the same, with musl",
    ),
    Rule::any(Call::Getpid, "the same"),
    Rule::any(Call::Getpgid, "whether it is this process' turn"),
    Rule::any(Call::Getpgrp, "the same"),
];

/// Gives a service manager signs of life.
pub(super) const NOTIFY_TABLE: Table = &[
    Rule::any(Call::Sendto, "a sign of life"),
    Rule::any(Call::Eventfd2, "the answer to a command"),
    Rule::any(Call::Poll, "the same"),
    Rule::any(Call::Ppoll, "the same"),
];

/// Builds machines, at the start and when a guest resets, and starts their threads.
pub(super) const MAIN_TABLE: Table = &[
    Rule::masked(
        Call::Ioctl,
        1,
        IOCTL_TYPE,
        &[KVM_TYPE],
        "a VM, its vCPUs and their state",
    ),
    Rule::one_of(
        Call::Tgkill,
        2,
        &[KICK_GLIBC, KICK_MUSL],
        "a vCPU leaves the guest",
    ),
    Rule::one_of(
        Call::Tkill,
        1,
        &[KICK_GLIBC, KICK_MUSL],
        "the same, with musl",
    ),
    Rule::one_of(
        Call::RtSigaction,
        0,
        &[LIBRARY_CANCEL, LIBRARY_SETXID, KICK_GLIBC, KICK_MUSL],
        "the handler of that signal, and those of the C library, with the first thread",
    ),
    Rule::any(Call::Eventfd2, "doorbells and interrupts"),
    Rule::any(Call::EpollCreate1, "the events of a thread"),
    Rule::any(Call::TimerfdCreate, "limits of a device"),
    Rule::any(Call::Socketpair, "signals, through a pipe"),
    Rule::any(Call::MemfdCreate, "shared memory of a guest"),
    Rule::one_of(
        Call::Fcntl,
        1,
        &[F_ADD_SEALS],
        "shared memory that keeps its size",
    ),
    Rule::one_of(
        Call::Madvise,
        2,
        &[MADV_HUGEPAGE, MADV_DONTFORK, MADV_POPULATE_READ],
        "memory of the guest, and of rings",
    ),
    Rule::masked(
        Call::Userfaultfd,
        0,
        USER_MODE_ONLY,
        &[USER_MODE_ONLY],
        "which pages are written between two savings",
    ),
    Rule::masked(Call::Ioctl, 1, IOCTL_TYPE, &[UFFDIO_TYPE], "the same"),
    Rule::one_of(
        Call::Prlimit64,
        0,
        &[0],
        "limits of its own: the end of its stack, for a thread's start",
    ),
    // clone3 has its flags in memory, where no filter can look: glibc takes clone then.
    Rule::fails(Call::Clone3, ENOSYS, "whether it is a thread"),
    Rule::masked(
        Call::Clone,
        0,
        CLONE_THREAD,
        &[CLONE_THREAD],
        "threads, no processes",
    ),
    Rule::any(Call::SetRobustList, "a thread's start"),
    Rule::any(Call::Rseq, "a thread's start"),
    Rule::any(
        Call::SchedGetaffinity,
        "a thread's start: where its stack ends",
    ),
    Rule::one_of(
        Call::Prctl,
        0,
        &[PR_SET_NAME, PR_SET_NO_NEW_PRIVS],
        "a thread's name, and its filter",
    ),
    Rule::one_of(
        Call::Seccomp,
        0,
        &[SECCOMP_SET_MODE_FILTER],
        "a thread's filter",
    ),
    Rule::any(Call::IoUringRegister, "the event of a ring"),
];
