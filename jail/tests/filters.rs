//! What the filter of each role refuses, and that what every thread needs goes on.

#![allow(clippy::unwrap_used)]

#[path = "attempts/outside.rs"]
mod outside;

use jail::roles;
use outside::{Outside, users};

/// Attempts, and the system calls that are refused.
const REFUSED: [(&str, &str); 22] = [
    ("open", "openat"),
    ("open-proc", "openat"),
    ("parent", "openat"),
    ("make", "mkdir"),
    ("truncate", "truncate"),
    ("packets", "socket"),
    ("connect-tcp", "socket"),
    ("execute", "execve"),
    ("execute-memory", "execveat"),
    ("fork", "clone"),
    ("signal", "kill"),
    ("trace", "ptrace"),
    ("read-memory", "process_vm_readv"),
    ("mount", "mount"),
    ("unmount", "umount2"),
    ("chroot", "chroot"),
    ("namespace", "unshare"),
    ("bpf", "bpf"),
    ("user", "setresuid"),
    ("executable-memory", "mmap"),
    ("handler", "rt_sigaction"),
    ("unknown-call", "1023"),
];
/// What the main thread may and others do not.
const OF_MAIN: [&str; 2] = ["limit", "signal-thread"];

/// What a thread may that opens what others name.
const OF_API: [&str; 3] = ["open", "open-proc", "parent"];

#[test]
fn r32_a_violation_names_call_and_thread_and_ends_the_process_with_status_1() {
    // Without the rest of the sandbox: the filter alone does it.
    let outside = Outside::of(*users().last().unwrap());
    for role in roles::ALL.iter().chain(roles::served::ALL) {
        let with_role = format!("role={}", role.name);
        let main = OF_MAIN.map(|name| {
            (
                name,
                if name == "limit" {
                    "prlimit64"
                } else {
                    "tgkill"
                },
            )
        });
        let is_main = [roles::MAIN, roles::MAIN_WITH_FORKS].contains(role);
        let main = main.into_iter().filter(|_| !is_main);
        let makes_processes = *role == roles::MAIN_WITH_FORKS;
        let refused = REFUSED.into_iter().chain(main);
        let opens = *role == roles::served::API;
        let may = |attempt: &str| {
            makes_processes && attempt == "fork" || opens && OF_API.contains(&attempt)
        };
        for (attempt, call) in refused.filter(|(attempt, _)| !may(attempt)) {
            // musl opens by the old call where there is one, and glibc makes folders by the new where there is none.
            let calls = match call {
                "openat" => [call, "open"],
                "mkdir" => [call, "mkdirat"],
                "clone" | "mount" => [call, call],
                other => [other, other],
            };
            let ran = outside.run("off", &[&with_role, attempt]);
            let what = format!("{} {attempt}: {} {}", role.name, ran.stdout, ran.stderr);
            assert_eq!(ran.status, Some(1), "{what}");
            let lines: Vec<_> = ran.stderr.lines().collect();
            let [line] = lines[..] else {
                panic!("{what}");
            };
            let is_named = calls.iter().any(|call| {
                line.starts_with(&format!(
                    "error: the system call {call} is not allowed to the thread '{}': ",
                    role.name
                ))
            });
            assert!(is_named, "{what}");
            assert!(!ran.stdout.contains(&format!("{attempt}: ")), "{what}");
        }
    }
}

#[test]
fn a_thread_that_prepares_opens_files_and_starts_no_program() {
    let outside = Outside::of(*users().last().unwrap());
    let ran = outside.run(
        "off",
        &["role=start", "nothing", "allocate", "print", "open-proc"],
    );
    for attempt in ["nothing", "allocate", "print", "open-proc"] {
        assert_eq!(ran.result(attempt), "done", "{attempt}: {}", ran.stderr);
    }
    /// What is refused by another name, and the calls that it goes by.
    const TWINS: [(&str, &str); 18] = [
        ("signal-threads", "tkill"),
        ("signal-other", "tgkill"),
        ("node-at", "mknodat"),
        ("users", "setreuid"),
        ("own-group", "setgid"),
        ("other-group", "setregid"),
        ("all-groups", "setgroups"),
        ("three-groups", "setresgid"),
        ("capabilities", "capset"),
        ("time", "settimeofday"),
        ("clock", "clock_adjtime"),
        ("adjust", "adjtimex"),
        ("kexec", "kexec_file_load"),
        ("module", "delete_module"),
        ("mount-attributes", "mount_setattr"),
        ("mount-again", "fspick"),
        ("mount-configure", "fsconfig"),
        ("fork-in-namespace", "clone"),
    ];
    const WORST: [&str; 11] = [
        "execute",
        "execute-memory",
        "signal",
        "trace",
        "read-memory",
        "mount",
        "unmount",
        "chroot",
        "namespace",
        "bpf",
        "user",
    ];
    // A machine that becomes two makes sure that it has one thread. Threads are not made by what no filter can look at.
    let ran = outside.run("off", &["role=start", "thread-of-vcpu", "new-clone"]);
    assert_eq!(ran.result("thread-of-vcpu"), "done", "{}", ran.stderr);
    assert_eq!(ran.result("new-clone"), "ENOSYS", "{}", ran.stderr);
    let ran = outside.run("off", &["role=start", "only-thread"]);
    assert_eq!(ran.result("only-thread"), "EINVAL", "{}", ran.stderr);
    let worst = REFUSED.iter().filter(|(name, _)| WORST.contains(name));
    for (attempt, call) in worst.chain(&TWINS) {
        let ran = outside.run("off", &["role=start", attempt]);
        assert_eq!(ran.status, Some(1), "{attempt}: {}", ran.stderr);
        let line = format!("error: the system call {call} is not allowed to the thread 'start': ");
        assert!(ran.stderr.starts_with(&line), "{}", ran.stderr);
    }
}

#[test]
fn the_thread_of_an_api_has_a_file_in_memory_for_a_state_that_is_written_where_it_is() {
    let outside = Outside::of(*users().last().unwrap());
    let ran = outside.run("off", &["role=api", "memory-file"]);
    assert_eq!(ran.result("memory-file"), "done", "{}", ran.stderr);
}

#[test]
fn threads_of_every_role_begin_compute_print_panic_and_end() {
    for user in users() {
        let outside = Outside::of(user);
        for role in roles::ALL.iter().chain(roles::served::ALL) {
            let with_role = format!("role={}", role.name);
            let ran = outside.run("strict", &[&with_role, "nothing", "allocate", "print"]);
            let what = format!("{}: {} {}", role.name, ran.stdout, ran.stderr);
            assert_eq!(
                (ran.status, &ran.stderr[..]),
                (Some(0), "printed\n"),
                "{what}"
            );
            for attempt in ["nothing", "allocate", "print"] {
                assert_eq!(ran.result(attempt), "done", "{what}");
            }
            let ran = outside.run("strict", &[&with_role, "panic"]);
            assert!(ran.stderr.contains("as asked"), "{}", ran.stderr);
            assert!(
                ran.stderr.contains("error: the thread panicked"),
                "{}",
                ran.stderr
            );
            assert_eq!(ran.status, Some(2));
        }
    }
}

#[test]
fn the_main_thread_starts_threads_and_gives_them_filters_and_no_processes() {
    let outside = Outside::of(*users().last().unwrap());
    let ran = outside.run("strict", &["role=main", "thread-of-vcpu"]);
    assert_eq!(ran.result("thread-of-vcpu"), "done", "{}", ran.stderr);
    // A vCPU's thread is one that the main thread has started.
    let ran = outside.run("strict", &["role=main", "vcpu-opens"]);
    assert_eq!(ran.status, Some(1));
    let line = "error: the system call getrandom is not allowed to the thread 'vcpu': ";
    assert!(ran.stderr.starts_with(line), "{}", ran.stderr);
}

#[test]
fn many_threads_allocate_without_a_look_at_the_system() {
    let outside = Outside::of(*users().last().unwrap());
    let ran = outside.run("strict", &["role=main", "many-threads"]);
    assert_eq!(ran.result("many-threads"), "done", "{}", ran.stderr);
}

#[test]
fn a_kernel_without_filters_is_told_of() {
    let outside = Outside::of(*users().last().unwrap());
    let ran = outside.run("auto", &["refuse=seccomp:ENOSYS", "nothing"]);
    assert_eq!(ran.level(), "weak");
    assert!(
        ran.missing("system-calls")
            .contains("CONFIG_SECCOMP_FILTER")
    );
    let ran = outside.run("off", &["refuse=seccomp:ENOSYS", "role=vcpu", "nothing"]);
    let why = "error: the kernel does not take the filter of vcpu";
    assert!(ran.stderr.starts_with(why), "{}", ran.stderr);
    assert_eq!(ran.status, Some(2));
}
