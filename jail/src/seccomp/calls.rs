//! System calls by their names, with their numbers on every architecture.
//!
//! Besides those that tables allow, these are the ones that somebody would try who has taken over a thread, so that
//! a violation can be told by its name.

use std::fmt;

/// How an architecture numbers its system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// arch/x86/entry/syscalls/syscall_64.tbl of the kernel.
    X86_64,
    /// scripts/syscall.tbl of the kernel, which all newer architectures share.
    Generic,
}

impl Numbers {
    /// `None` for an architecture that is not known here.
    pub(crate) fn of(arch: &str) -> Option<Self> {
        match arch {
            "x86_64" => Some(Self::X86_64),
            "aarch64" | "riscv64" => Some(Self::Generic),
            _ => None,
        }
    }
}

/// One line a call: its name here, that of the crate libc, the number on x86_64, and the generic one; then those
/// that only x86_64 has.
macro_rules! calls {
    ($($call:ident $sys:ident $x86_64:literal $generic:literal;)* ---
     $($old:ident $old_sys:ident $number:literal;)*) => {
        /// A system call.
        #[allow(missing_docs)] // They are called what the manual calls them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Call { $($call,)* $($old,)* }

        impl Call {
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$call,)* $(Self::$old,)*];

            /// What the manual calls it.
            pub fn name(self) -> &'static str {
                let name = match self {
                    $(Self::$call => stringify!($sys),)*
                    $(Self::$old => stringify!($old_sys),)*
                };
                name.strip_prefix("SYS_").unwrap_or(name)
            }

            /// `None` where an architecture has no such call.
            pub(crate) fn number(self, numbers: Numbers) -> Option<u16> {
                match (self, numbers) {
                    $((Self::$call, Numbers::X86_64) => Some($x86_64),)*
                    $((Self::$call, Numbers::Generic) => Some($generic),)*
                    $((Self::$old, Numbers::X86_64) => Some($number),)*
                    $((Self::$old, Numbers::Generic) => None,)*
                }
            }

            /// The call with a number, if it is known here.
            pub(crate) fn of_number(number: i32, numbers: Numbers) -> Option<Self> {
                match (number, numbers) {
                    $(($x86_64, Numbers::X86_64) | ($generic, Numbers::Generic) => Some(Self::$call),)*
                    $(($number, Numbers::X86_64) => Some(Self::$old),)*
                    _ => None,
                }
            }
        }

        /// The numbers of the architecture that this is built for.
        #[cfg(test)]
        const IN_LIBC: &[(Call, libc::c_long)] = &[
            $((Call::$call, in_libc::$sys),)*
            $(#[cfg(target_arch = "x86_64")] (Call::$old, libc::$old_sys),)*
        ];
    };
}

calls! {
    Accept4 SYS_accept4 288 242;
    Adjtimex SYS_adjtimex 159 171;
    Bind SYS_bind 49 200;
    Bpf SYS_bpf 321 280;
    Brk SYS_brk 12 214;
    Capset SYS_capset 126 91;
    Chdir SYS_chdir 80 49;
    Chroot SYS_chroot 161 51;
    ClockAdjtime SYS_clock_adjtime 305 266;
    ClockGettime SYS_clock_gettime 228 113;
    ClockNanosleep SYS_clock_nanosleep 230 115;
    ClockSettime SYS_clock_settime 227 112;
    Clone SYS_clone 56 220;
    Clone3 SYS_clone3 435 435;
    Close SYS_close 3 57;
    CloseRange SYS_close_range 436 436;
    Connect SYS_connect 42 203;
    DeleteModule SYS_delete_module 176 106;
    Dup SYS_dup 32 23;
    Dup3 SYS_dup3 292 24;
    EpollCreate1 SYS_epoll_create1 291 20;
    EpollCtl SYS_epoll_ctl 233 21;
    EpollPwait SYS_epoll_pwait 281 22;
    Eventfd2 SYS_eventfd2 290 19;
    Execve SYS_execve 59 221;
    Execveat SYS_execveat 322 281;
    Exit SYS_exit 60 93;
    ExitGroup SYS_exit_group 231 94;
    Fallocate SYS_fallocate 285 47;
    Fchmod SYS_fchmod 91 52;
    Fchown SYS_fchown 93 55;
    Fcntl SYS_fcntl 72 25;
    Fdatasync SYS_fdatasync 75 83;
    Fgetxattr SYS_fgetxattr 193 10;
    FinitModule SYS_finit_module 313 273;
    Flock SYS_flock 73 32;
    Fremovexattr SYS_fremovexattr 199 16;
    Fsconfig SYS_fsconfig 431 431;
    Fsetxattr SYS_fsetxattr 190 7;
    Fsmount SYS_fsmount 432 432;
    Fsopen SYS_fsopen 430 430;
    Fspick SYS_fspick 433 433;
    Fstat SYS_fstat 5 80;
    Fsync SYS_fsync 74 82;
    Ftruncate SYS_ftruncate 77 46;
    Futex SYS_futex 202 98;
    Getcwd SYS_getcwd 79 17;
    Getdents64 SYS_getdents64 217 61;
    Geteuid SYS_geteuid 107 175;
    Getpeername SYS_getpeername 52 205;
    Getpgid SYS_getpgid 121 155;
    Getpid SYS_getpid 39 172;
    Getppid SYS_getppid 110 173;
    Getrandom SYS_getrandom 318 278;
    Getsockname SYS_getsockname 51 204;
    Getsockopt SYS_getsockopt 55 209;
    Gettid SYS_gettid 186 178;
    Getuid SYS_getuid 102 174;
    InitModule SYS_init_module 175 105;
    Ioctl SYS_ioctl 16 29;
    IoUringEnter SYS_io_uring_enter 426 426;
    IoUringRegister SYS_io_uring_register 427 427;
    IoUringSetup SYS_io_uring_setup 425 425;
    KexecFileLoad SYS_kexec_file_load 320 294;
    KexecLoad SYS_kexec_load 246 104;
    Keyctl SYS_keyctl 250 219;
    Kill SYS_kill 62 129;
    LandlockAddRule SYS_landlock_add_rule 445 445;
    LandlockCreateRuleset SYS_landlock_create_ruleset 444 444;
    LandlockRestrictSelf SYS_landlock_restrict_self 446 446;
    Linkat SYS_linkat 265 37;
    Listen SYS_listen 50 201;
    Lseek SYS_lseek 8 62;
    Madvise SYS_madvise 28 233;
    Membarrier SYS_membarrier 324 283;
    MemfdCreate SYS_memfd_create 319 279;
    Mknodat SYS_mknodat 259 33;
    Mlock SYS_mlock 149 228;
    Mlockall SYS_mlockall 151 230;
    Mmap SYS_mmap 9 222;
    Mount SYS_mount 165 40;
    MountSetattr SYS_mount_setattr 442 442;
    MoveMount SYS_move_mount 429 429;
    Mprotect SYS_mprotect 10 226;
    Mremap SYS_mremap 25 216;
    Msgget SYS_msgget 68 186;
    Munmap SYS_munmap 11 215;
    NameToHandleAt SYS_name_to_handle_at 303 264;
    Nanosleep SYS_nanosleep 35 101;
    Newfstatat SYS_newfstatat 262 79;
    Openat SYS_openat 257 56;
    Openat2 SYS_openat2 437 437;
    OpenByHandleAt SYS_open_by_handle_at 304 265;
    OpenTree SYS_open_tree 428 428;
    PerfEventOpen SYS_perf_event_open 298 241;
    PidfdGetfd SYS_pidfd_getfd 438 438;
    PidfdOpen SYS_pidfd_open 434 434;
    PidfdSendSignal SYS_pidfd_send_signal 424 424;
    Pipe2 SYS_pipe2 293 59;
    PivotRoot SYS_pivot_root 155 41;
    Ppoll SYS_ppoll 271 73;
    Prctl SYS_prctl 157 167;
    Pread64 SYS_pread64 17 67;
    Preadv SYS_preadv 295 69;
    Prlimit64 SYS_prlimit64 302 261;
    ProcessMadvise SYS_process_madvise 440 440;
    ProcessVmReadv SYS_process_vm_readv 310 270;
    ProcessVmWritev SYS_process_vm_writev 311 271;
    Ptrace SYS_ptrace 101 117;
    Pwrite64 SYS_pwrite64 18 68;
    Pwritev SYS_pwritev 296 70;
    Quotactl SYS_quotactl 179 60;
    Read SYS_read 0 63;
    Readlinkat SYS_readlinkat 267 78;
    Readv SYS_readv 19 65;
    Reboot SYS_reboot 169 142;
    Recvfrom SYS_recvfrom 45 207;
    Recvmsg SYS_recvmsg 47 212;
    Renameat2 SYS_renameat2 316 276;
    RestartSyscall SYS_restart_syscall 219 128;
    Rseq SYS_rseq 334 293;
    RtSigaction SYS_rt_sigaction 13 134;
    RtSigpending SYS_rt_sigpending 127 136;
    RtSigprocmask SYS_rt_sigprocmask 14 135;
    RtSigqueueinfo SYS_rt_sigqueueinfo 129 138;
    RtSigreturn SYS_rt_sigreturn 15 139;
    RtSigtimedwait SYS_rt_sigtimedwait 128 137;
    RtTgsigqueueinfo SYS_rt_tgsigqueueinfo 297 240;
    SchedGetaffinity SYS_sched_getaffinity 204 123;
    SchedYield SYS_sched_yield 24 124;
    Seccomp SYS_seccomp 317 277;
    Semget SYS_semget 64 190;
    Sendfile SYS_sendfile 40 71;
    Sendmsg SYS_sendmsg 46 211;
    Sendto SYS_sendto 44 206;
    Setgid SYS_setgid 106 144;
    Setgroups SYS_setgroups 116 159;
    Setns SYS_setns 308 268;
    Setregid SYS_setregid 114 143;
    Setresgid SYS_setresgid 119 149;
    Setresuid SYS_setresuid 117 147;
    Setreuid SYS_setreuid 113 145;
    Setrlimit SYS_setrlimit 160 164;
    SetRobustList SYS_set_robust_list 273 99;
    Setsid SYS_setsid 112 157;
    Setsockopt SYS_setsockopt 54 208;
    Settimeofday SYS_settimeofday 164 170;
    SetTidAddress SYS_set_tid_address 218 96;
    Setuid SYS_setuid 105 146;
    Shmget SYS_shmget 29 194;
    Shutdown SYS_shutdown 48 210;
    Sigaltstack SYS_sigaltstack 131 132;
    Socket SYS_socket 41 198;
    Socketpair SYS_socketpair 53 199;
    Splice SYS_splice 275 76;
    Statx SYS_statx 332 291;
    Swapon SYS_swapon 167 224;
    Symlinkat SYS_symlinkat 266 36;
    SyncFileRange SYS_sync_file_range 277 84;
    Syslog SYS_syslog 103 116;
    Tee SYS_tee 276 77;
    Tgkill SYS_tgkill 234 131;
    TimerfdCreate SYS_timerfd_create 283 85;
    TimerfdSettime SYS_timerfd_settime 286 86;
    Tkill SYS_tkill 200 130;
    Truncate SYS_truncate 76 45;
    Umount2 SYS_umount2 166 39;
    Uname SYS_uname 63 160;
    Unlinkat SYS_unlinkat 263 35;
    Unshare SYS_unshare 272 97;
    Userfaultfd SYS_userfaultfd 323 282;
    Vmsplice SYS_vmsplice 278 75;
    Wait4 SYS_wait4 61 260;
    Write SYS_write 1 64;
    Writev SYS_writev 20 66;
    ---
    Chmod SYS_chmod 90;
    Chown SYS_chown 92;
    Creat SYS_creat 85;
    EpollWait SYS_epoll_wait 232;
    Fork SYS_fork 57;
    Getpgrp SYS_getpgrp 111;
    Link SYS_link 86;
    Lstat SYS_lstat 6;
    Mkdir SYS_mkdir 83;
    Mknod SYS_mknod 133;
    Open SYS_open 2;
    Poll SYS_poll 7;
    Readlink SYS_readlink 89;
    Rename SYS_rename 82;
    Stat SYS_stat 4;
    Symlink SYS_symlink 88;
    Unlink SYS_unlink 87;
    Vfork SYS_vfork 58;
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The crate libc, with what it lacks.
#[cfg(test)]
mod in_libc {
    pub(super) use libc::*;

    #[cfg(target_arch = "riscv64")]
    #[expect(non_upper_case_globals, reason = "called as the crate would call it")]
    pub(super) const SYS_kexec_file_load: c_long = 294;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_kernel() {
        let here = Numbers::of(std::env::consts::ARCH).expect("a known architecture");
        for (call, number) in IN_LIBC {
            let known = call.number(here).map(libc::c_long::from);
            assert_eq!(known, Some(*number), "{call}");
        }
    }

    #[test]
    fn a_number_leads_back_to_its_call() {
        assert_eq!(Call::Execve.to_string(), "execve");
        for numbers in [Numbers::X86_64, Numbers::Generic] {
            for call in Call::ALL {
                if let Some(number) = call.number(numbers) {
                    assert_eq!(Call::of_number(number.into(), numbers), Some(*call));
                }
            }
            assert_eq!(Call::of_number(-1, numbers), None);
        }
    }
}
