//! The numbers in the tables: flags, signals, requests of ioctl(2).

pub(super) const PROT_EXEC: u32 = libc::PROT_EXEC.cast_unsigned();
pub(super) const MADV_NORMAL: u32 = libc::MADV_NORMAL.cast_unsigned();
pub(super) const MADV_DONTNEED: u32 = libc::MADV_DONTNEED.cast_unsigned();
pub(super) const MADV_FREE: u32 = libc::MADV_FREE.cast_unsigned();
pub(super) const MADV_HUGEPAGE: u32 = libc::MADV_HUGEPAGE.cast_unsigned();
pub(super) const MADV_DONTFORK: u32 = libc::MADV_DONTFORK.cast_unsigned();
pub(super) const MADV_POPULATE_READ: u32 = libc::MADV_POPULATE_READ.cast_unsigned();
/// Also where the C library has no name for them yet: glibc guards stacks so from 2.42 on.
pub(super) const MADV_GUARD_INSTALL: u32 = 102;
pub(super) const MADV_GUARD_REMOVE: u32 = 103;
pub(super) const MADV_REMOVE: u32 = libc::MADV_REMOVE.cast_unsigned();
pub(super) const MADV_DONTDUMP: u32 = libc::MADV_DONTDUMP.cast_unsigned();
pub(super) const F_GETFD: u32 = libc::F_GETFD.cast_unsigned();
pub(super) const F_SETFD: u32 = libc::F_SETFD.cast_unsigned();
pub(super) const F_GETFL: u32 = libc::F_GETFL.cast_unsigned();
pub(super) const F_SETFL: u32 = libc::F_SETFL.cast_unsigned();
pub(super) const F_DUPFD_CLOEXEC: u32 = libc::F_DUPFD_CLOEXEC.cast_unsigned();
pub(super) const F_ADD_SEALS: u32 = libc::F_ADD_SEALS.cast_unsigned();
pub(super) const F_OFD_GETLK: u32 = libc::F_OFD_GETLK.cast_unsigned();
pub(super) const F_OFD_SETLK: u32 = libc::F_OFD_SETLK.cast_unsigned();
pub(super) const AF_UNIX: u32 = libc::AF_UNIX.cast_unsigned();
pub(super) const SIGABRT: u32 = libc::SIGABRT.cast_unsigned();
pub(super) const SIGBUS: u32 = libc::SIGBUS.cast_unsigned();
pub(super) const SIGSEGV: u32 = libc::SIGSEGV.cast_unsigned();
pub(super) const SIGQUIT: u32 = libc::SIGQUIT.cast_unsigned();
pub(super) const SIGSTOP: u32 = libc::SIGSTOP.cast_unsigned();
pub(super) const SIGTSTP: u32 = libc::SIGTSTP.cast_unsigned();
pub(super) const CLONE_THREAD: u32 = libc::CLONE_THREAD.cast_unsigned();
/// What makes namespaces for a new process (clone(2)).
pub(super) const NAMESPACES: u32 = libc::CLONE_NEWCGROUP.cast_unsigned()
    | libc::CLONE_NEWIPC.cast_unsigned()
    | libc::CLONE_NEWNET.cast_unsigned()
    | libc::CLONE_NEWNS.cast_unsigned()
    | libc::CLONE_NEWPID.cast_unsigned()
    | libc::CLONE_NEWUSER.cast_unsigned()
    | libc::CLONE_NEWUTS.cast_unsigned();
/// What a process may have that is made by fork(2): the signal of its end, and where its number goes.
pub(super) const OF_FORK: u32 =
    0xff | libc::CLONE_CHILD_SETTID.cast_unsigned() | libc::CLONE_CHILD_CLEARTID.cast_unsigned();
pub(super) const SIGHUP: u32 = libc::SIGHUP.cast_unsigned();
pub(super) const SIGINT: u32 = libc::SIGINT.cast_unsigned();
pub(super) const SIGTERM: u32 = libc::SIGTERM.cast_unsigned();
pub(super) const SIGCONT: u32 = libc::SIGCONT.cast_unsigned();
pub(super) const SIGWINCH: u32 = libc::SIGWINCH.cast_unsigned();
pub(super) const PR_SET_NAME: u32 = libc::PR_SET_NAME.cast_unsigned();
pub(super) const PR_SET_NO_NEW_PRIVS: u32 = libc::PR_SET_NO_NEW_PRIVS.cast_unsigned();
pub(super) const SECCOMP_SET_MODE_FILTER: u32 = libc::SECCOMP_SET_MODE_FILTER;
pub(super) const ENOSYS: u16 = 38;
/// Signals that C libraries keep for themselves.
pub(super) const LIBRARY_CANCEL: u32 = 32;
pub(super) const LIBRARY_SETXID: u32 = 33;
/// SIGRTMIN of either C library.
pub(super) const KICK_GLIBC: u32 = 34;
pub(super) const KICK_MUSL: u32 = 35;
pub(super) const PUNCH_HOLE: u32 =
    libc::FALLOC_FL_PUNCH_HOLE.cast_unsigned() | libc::FALLOC_FL_KEEP_SIZE.cast_unsigned();
pub(super) const ZERO_RANGE: u32 =
    libc::FALLOC_FL_ZERO_RANGE.cast_unsigned() | libc::FALLOC_FL_KEEP_SIZE.cast_unsigned();

// Requests of ioctl(2), which have the same numbers on every architecture there is here. KVM's are those of
// include/uapi/linux/kvm.h; the registers of two of them x86_64 alone has.
/// The bits that name a driver (include/uapi/asm-generic/ioctl.h).
pub(super) const IOCTL_TYPE: u32 = 0xff00;
/// KVMIO.
pub(super) const KVM_TYPE: u32 = 0xae00;
pub(super) const KVM_RUN: u32 = 0xae80;
pub(super) const KVM_KVMCLOCK_CTRL: u32 = 0xaead;
pub(super) const KVM_GET_REGS: u32 = 0x8090_ae81;
pub(super) const KVM_GET_SREGS: u32 = 0x8138_ae83;
pub(super) const KVM_GET_ONE_REG: u32 = 0x4010_aeab;
pub(super) const KVM_SET_GSI_ROUTING: u32 = 0x4008_ae6a;
pub(super) const KVM_IRQFD: u32 = 0x4020_ae76;
pub(super) const KVM_IOEVENTFD: u32 = 0x4040_ae79;
pub(super) const KVM_IRQ_LINE: u32 = 0x4008_ae61;
pub(super) const TUNSETIFF: u32 = 0x4004_54ca;
pub(super) const TUNGETIFF: u32 = 0x8004_54d2;
pub(super) const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
pub(super) const TUNSETOFFLOAD: u32 = 0x4004_54d0;
pub(super) const TUNSETQUEUE: u32 = 0x4004_54d9;
pub(super) const BLKSSZGET: u32 = 0x1268;
pub(super) const BLKROGET: u32 = 0x125e;
pub(super) const FIONBIO: u32 = 0x5421;
pub(super) const TCGETS: u32 = 0x5401;
pub(super) const TCSETS: u32 = 0x5402;
pub(super) const TCGETS2: u32 = 0x802c_542a;
pub(super) const TCSETS2: u32 = 0x402c_542b;
pub(super) const TIOCGPGRP: u32 = 0x540f;
pub(super) const TIOCGWINSZ: u32 = 0x5413;
// Of network interfaces (include/uapi/linux/sockios.h).
pub(super) const SIOCGIFINDEX: u32 = 0x8933;
pub(super) const SIOCGIFFLAGS: u32 = 0x8913;
pub(super) const SIOCSIFFLAGS: u32 = 0x8914;
pub(super) const SIOCGIFHWADDR: u32 = 0x8927;
pub(super) const SIOCETHTOOL: u32 = 0x8946;
/// UFFDIO, and UFFD_USER_MODE_ONLY of the same file (include/uapi/linux/userfaultfd.h).
pub(super) const UFFDIO_TYPE: u32 = 0xaa00;
pub(super) const USER_MODE_ONLY: u32 = 1;
pub(super) const UFFDIO_WAKE: u32 = 0x8010_aa02;
pub(super) const PAGEMAP_SCAN: u32 = 0xc060_6610;
pub(super) const FICLONE: u32 = 0x4004_9409;
