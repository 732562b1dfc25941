use std::collections::BTreeSet;

use super::numbers::*;
use super::*;
use crate::seccomp::{Call, Filter, Only, Rule};

fn rules(role: &Role) -> impl Iterator<Item = &'static Rule> {
    role.tables.iter().copied().flatten()
}

#[test]
fn every_role_has_a_filter_on_every_architecture() {
    for arch in ["x86_64", "aarch64", "riscv64"] {
        for role in ALL.iter().chain(served::ALL) {
            let filter = Filter::for_arch(role, arch).expect("a filter");
            // Beyond it a start is seen to be slower.
            let is_main = [MAIN, MAIN_WITH_FORKS].contains(role);
            let most = match is_main {
                true => 550,
                // It begins beside a start.
                false if *role == served::API => 400,
                false => 250,
            };
            let is = filter.instructions();
            assert!(is < most, "{} on {arch} has {is}", role.name);
        }
    }
}

#[test]
fn every_rule_says_what_for() {
    for rule in ALL.iter().chain(served::ALL).flat_map(rules) {
        assert!(!rule.why.is_empty(), "{}", rule.call);
    }
    let all: Vec<_> = ALL.iter().chain(served::ALL).collect();
    let names: BTreeSet<_> = all.iter().map(|role| role.name).collect();
    assert_eq!(names.len(), all.len());
}

use Call::*;

/// What no thread does that nobody may name a file to.
const NEVER: &[Call] = &[
    Open,
    Openat,
    Openat2,
    OpenByHandleAt,
    Creat,
    Execve,
    Execveat,
    Fork,
    Vfork,
    Ptrace,
    ProcessVmReadv,
    ProcessVmWritev,
    PidfdGetfd,
    Mount,
    MoveMount,
    Fsopen,
    OpenTree,
    Umount2,
    PivotRoot,
    Chroot,
    Setns,
    Unshare,
    Bpf,
    PerfEventOpen,
    InitModule,
    Keyctl,
    KexecLoad,
    IoUringSetup,
    Bind,
    Listen,
    Renameat2,
    Linkat,
    Symlinkat,
    Truncate,
    Chmod,
    Chown,
    Setuid,
    Setresuid,
    Splice,
    Vmsplice,
];

#[test]
fn no_role_opens_executes_traces_mounts_or_makes_processes() {
    // Processes, which have the rights of the one that makes them, are made by one role, in one table.
    let rules = |role: &Role| {
        let tables = role.tables.iter().copied();
        let other = tables.filter(|table| *table != FORKS_TABLE);
        other.flatten().collect::<Vec<_>>()
    };
    let making: Vec<_> = FORKS_TABLE.iter().map(|rule| rule.call).collect();
    for call in NEVER {
        let is_there = [Fork, Unshare, IoUringSetup, Listen].contains(call);
        assert_eq!(making.contains(call), is_there, "{call}");
    }
    for role in ALL {
        assert_eq!(
            role.tables.iter().flat_map(|table| table.iter()).count() > rules(role).len(),
            *role == MAIN_WITH_FORKS
        );
        for rule in rules(role) {
            assert!(!NEVER.contains(&rule.call), "{}: {}", role.name, rule.call);
        }
    }
    // One has to look at what these do.
    let any: Vec<_> = ALL
        .iter()
        .chain(served::ALL)
        .flat_map(|role| role.tables.iter().copied().flatten())
        .filter(|rule| rule.only == Only::Any)
        .collect();
    for call in [
        Ioctl,
        Fcntl,
        Prctl,
        Clone,
        Clone3,
        Kill,
        Tkill,
        Tgkill,
        Socket,
        Mmap,
        Mprotect,
        Madvise,
        Seccomp,
        Fallocate,
        Userfaultfd,
        RtSigaction,
    ] {
        assert!(any.iter().all(|rule| rule.call != call), "{call}");
    }
}

#[test]
fn a_thread_that_opens_files_executes_traces_and_mounts_nothing_and_reaches_no_network() {
    const MAY: &[Call] = &[Open, Openat, Bind, Listen, Renameat2, Linkat];
    for rule in rules(&served::API) {
        assert!(
            MAY.contains(&rule.call) || !NEVER.contains(&rule.call),
            "{}",
            rule.call
        );
        assert!(
            ![Clone, Clone3, Fork, Kill, Tkill, Tgkill, Prctl, Seccomp].contains(&rule.call),
            "{}",
            rule.call
        );
        if let (Socket, Only::Bits { values, .. }) = (rule.call, rule.only) {
            assert_eq!(values, [AF_UNIX]);
        }
    }
    // Whatever a thread may later, it may not be refused from the start.
    for role in ALL.iter().chain(served::ALL) {
        for rule in rules(role).filter(|_| *role != MAIN_WITH_FORKS) {
            assert!(!served::REFUSED.contains(&rule.call), "{}", rule.call);
        }
    }
    for role in ALL
        .iter()
        .chain([&served::API, &served::CLOCK, &served::RUNNING])
    {
        for rule in rules(role) {
            let mut but = served::REFUSED_BUT.iter();
            let Some(but) = but.find(|but| but.call == rule.call) else {
                continue;
            };
            match (rule.only, but.only) {
                (
                    Only::Bits { values, .. },
                    Only::Bits {
                        values: most,
                        mask: u32::MAX,
                        ..
                    },
                ) => {
                    assert!(
                        values.iter().all(|value| most.contains(value)),
                        "{}",
                        rule.call
                    );
                }
                // What is said of its flags is about others.
                (Only::Bits { .. }, Only::Bits { .. }) => assert_eq!(rule.call, Clone),
                (one, other) => assert_eq!(one, other, "{}", rule.call),
            }
        }
    }
    for rule in rules(&served::CLOCK) {
        assert!(!NEVER.contains(&rule.call), "{}", rule.call);
    }
}

#[test]
fn what_a_thread_may_the_one_that_starts_it_may() {
    let main: Vec<_> = rules(&MAIN).collect();
    let with_forks: Vec<_> = rules(&MAIN_WITH_FORKS).collect();
    assert!(main.iter().all(|rule| with_forks.contains(rule)));
    for role in ALL.iter().filter(|role| **role != MAIN_WITH_FORKS) {
        for rule in rules(role) {
            assert!(main.contains(&rule), "{}: {}", role.name, rule.call);
        }
    }
}

#[test]
fn requests_have_the_numbers_of_the_c_library() {
    // It has no name for the others.
    for (ours, theirs) in [
        (TUNSETIFF, libc::TUNSETIFF),
        (TUNSETOFFLOAD, libc::TUNSETOFFLOAD),
        (TUNGETIFF, libc::TUNGETIFF),
        (TUNSETVNETHDRSZ, libc::TUNSETVNETHDRSZ),
        (TUNSETQUEUE, libc::TUNSETQUEUE),
        (FIONBIO, libc::FIONBIO),
        (TCGETS, libc::TCGETS),
        (TCSETS, libc::TCSETS),
        (TIOCGPGRP, libc::TIOCGPGRP),
        (TIOCGWINSZ, libc::TIOCGWINSZ),
    ] {
        // One library has them signed.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let theirs = theirs as u32;
        assert_eq!(ours, theirs);
    }
    // These have a type of their own.
    for (ours, theirs) in [
        (SIOCGIFINDEX, libc::SIOCGIFINDEX),
        (SIOCGIFFLAGS, libc::SIOCGIFFLAGS),
        (SIOCSIFFLAGS, libc::SIOCSIFFLAGS),
        (SIOCGIFHWADDR, libc::SIOCGIFHWADDR),
        (SIOCETHTOOL, libc::SIOCETHTOOL),
    ] {
        assert_eq!(u64::from(ours), theirs);
    }
    assert_eq!(i32::from(ENOSYS), libc::ENOSYS);
    assert!([KICK_GLIBC, KICK_MUSL].contains(&libc::SIGRTMIN().cast_unsigned()));
}
