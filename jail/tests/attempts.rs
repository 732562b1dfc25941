//! What a process cannot do any more from inside, as root and as an ordinary user without a name.

#![allow(clippy::unwrap_used)]

#[path = "attempts/outside.rs"]
mod outside;

use outside::{Outside, users};

/// What the kernel says to somebody who is kept out.
const REFUSED: [&str; 7] = [
    "EPERM",
    "EACCES",
    "ENOENT",
    "EROFS",
    "ENETUNREACH",
    "ECONNREFUSED",
    "EINVAL",
];
/// What works for anybody outside a sandbox.
const USUAL: [&str; 10] = [
    "open",
    "open-proc",
    "parent",
    "connect-tcp",
    "connect-name",
    "connect-path",
    "truncate",
    "signal",
    "kept-file",
    "kept-socket",
];
/// What namespaces, Landlock and the lack of capabilities refuse, without any filter of system calls.
const ESCAPES: [&str; 18] = [
    "open",
    "open-kvm",
    "open-proc",
    "list-root",
    "make",
    "truncate",
    "connect-tcp",
    "connect-name",
    "kept-file",
    "packets",
    "execute",
    "signal",
    "signal-thread",
    "trace",
    "read-memory",
    "mount",
    "chroot",
    "bpf",
];

#[test]
fn without_a_sandbox_everything_works_that_is_tried_here() {
    for user in users() {
        let ran = Outside::of(user).run("off", &USUAL);
        assert_eq!(ran.level(), "off");
        for name in USUAL {
            assert_eq!(ran.result(name), "done", "{name} {user:?}");
        }
    }
}

#[test]
fn a_full_sandbox_leaves_nothing_to_open_connect_to_signal_or_mount() {
    for user in users() {
        let outside = Outside::of(user);
        let more = [
            "parent",
            "connect-path",
            "unmount",
            "host-name",
            "kept-socket",
        ];
        let ran = outside.run("strict", &[&ESCAPES[..], &more].concat());
        assert_eq!(ran.level(), "full", "{}", ran.stdout);
        for name in ESCAPES.iter().chain(&more[..4]) {
            assert!(REFUSED.contains(&ran.result(name)), "{}", ran.stdout);
        }
        assert_eq!(ran.result("kept-socket"), "done");
    }
}

#[test]
fn a_full_sandbox_without_folders_leaves_nothing_either() {
    let words = [&["sockets=none"], &ESCAPES[..]].concat();
    for user in users() {
        let ran = Outside::of(user).run("strict", &words);
        assert_eq!(ran.level(), "full", "{}", ran.stderr);
        for name in ESCAPES {
            let said = ran.result(name);
            assert!(REFUSED.contains(&said), "{name} {user:?}: {said}");
        }
    }
}

#[test]
fn a_root_that_cannot_be_changed_is_left_by_chroot() {
    // As on an initramfs, or in a chroot.
    for user in users() {
        let outside = Outside::of(user);
        let more = ["parent", "connect-path", "kept-socket"];
        let attempts = [&["refuse=pivot_root:EINVAL"], &ESCAPES[..], &more].concat();
        let ran = outside.run("strict", &attempts);
        assert_eq!(ran.level(), "full", "{}", ran.stdout);
        for name in ESCAPES.iter().chain(&more[..2]) {
            assert!(REFUSED.contains(&ran.result(name)), "{}", ran.stdout);
        }
        assert_eq!(ran.result("kept-socket"), "done");
    }
}

#[test]
fn without_namespaces_landlock_refuses_the_same() {
    for user in users() {
        let outside = Outside::of(user);
        let attempts = [&["refuse=unshare:EPERM"], &ESCAPES[..], &["kept-socket"]].concat();
        let ran = outside.run("auto", &attempts);
        assert_eq!(ran.level(), "filters", "{}", ran.stdout);
        for name in ESCAPES {
            assert!(REFUSED.contains(&ran.result(name)), "{}", ran.stdout);
        }
        assert_eq!(ran.result("kept-socket"), "done");
        for part in ["user-namespace", "root", "network", "ipc", "host-name"] {
            let why = ran.missing(part);
            assert!(why.contains("kernel.unprivileged_userns_clone"), "{why}");
        }
    }
}

#[test]
fn strict_refuses_what_auto_goes_on_with_and_says_why() {
    for user in users() {
        let outside = Outside::of(user);
        for (refusal, part, why) in [
            (
                "userns:ENOSPC",
                "user-namespace",
                "user.max_user_namespaces",
            ),
            ("userns:EINVAL", "user-namespace", "CONFIG_USER_NS"),
            ("netns:EPERM", "network", "namespace of networks"),
            ("fsopen:ENOSYS", "root", "make a new root"),
            ("umount2:EPERM", "root", "leave the old root"),
            // Calls that say they did what they did not do.
            ("umount2:nothing", "root", "leave the old root"),
            ("pivot_root:nothing", "root", "leave the old root"),
            ("landlock:ENOSYS", "files", "CONFIG_SECURITY_LANDLOCK"),
            ("landlock:EOPNOTSUPP", "signals", "lsm="),
        ] {
            let refuse = format!("refuse={refusal}");
            let ran = outside.run("auto", &[&refuse, "nothing"]);
            assert!(ran.missing(part).contains(why), "{refusal}: {}", ran.stdout);
            assert_eq!(ran.result("nothing"), "done");
            let level = if refusal.starts_with("landlock") {
                "weak"
            } else {
                "filters"
            };
            assert_eq!(ran.level(), level, "{refusal}");
            let ran = outside.run("strict", &[&refuse, "nothing"]);
            assert_eq!(ran.status, Some(2), "{refusal}");
            let start = format!("error: the sandbox is incomplete: {level}; without ");
            assert!(
                ran.stderr.starts_with(&start) && ran.stderr.contains(why),
                "{}",
                ran.stderr
            );
        }
    }
}

#[test]
fn in_a_container_of_an_ordinary_user_there_is_a_full_sandbox_unless_a_sysctl_forbids_it() {
    for user in users() {
        let outside = Outside::of(user);
        // What rootless containers are made of.
        let container = [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "--net",
            "--ipc",
        ];
        let Some(ran) = outside.run_under(&container, "strict", &ESCAPES) else {
            return;
        };
        assert_eq!(ran.level(), "full", "{} {}", ran.stdout, ran.stderr);
        for name in ESCAPES {
            assert!(REFUSED.contains(&ran.result(name)), "{}", ran.stdout);
        }
        let none = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
        let container = [&container[..], &["sh", "-c", none, "sh"]].concat();
        let ran = outside
            .run_under(&container, "auto", &["open", "mount"])
            .unwrap();
        assert_eq!(ran.missing_parts(), ["user-namespace"], "{}", ran.stdout);
        assert!(
            ran.missing("user-namespace")
                .contains("user.max_user_namespaces")
        );
        for name in ["open", "mount"] {
            assert!(REFUSED.contains(&ran.result(name)), "{}", ran.stdout);
        }
    }
}

#[test]
fn a_kept_folder_of_a_file_system_that_cannot_be_written_stays_so() {
    let Some(outside) = Outside::of_root() else {
        return;
    };
    let read_only = format!(
        "mount --bind {0} {0} && mount -o remount,bind,ro {0} && exec \"$@\"",
        outside.sockets()
    );
    let own_mounts = ["unshare", "--mount", "sh", "-c", &read_only, "sh"];
    if let Some(ran) = outside.run_under(&own_mounts, "strict", &["kept-socket"]) {
        assert_eq!(ran.level(), "full", "{} {}", ran.stdout, ran.stderr);
        assert_eq!(ran.result("kept-socket"), "EROFS");
    }
    // Nor is anything uncovered that lies below a mount in it.
    let covered = format!(
        "mkdir -p {0}/below && mount -t tmpfs none {0}/below && exec \"$@\"",
        outside.sockets()
    );
    let own_mounts = ["unshare", "--mount", "sh", "-c", &covered, "sh"];
    if let Some(ran) = outside.run_under(&own_mounts, "auto", &["nothing"]) {
        assert_eq!(ran.missing_parts(), ["root"], "{}", ran.stdout);
        let why = ran.missing("root");
        assert!(why.contains("something is mounted below it"), "{why}");
    }
    if let Some(ran) = outside.run_under(&own_mounts, "strict", &["nothing"]) {
        assert_eq!(ran.status, Some(2), "{}", ran.stdout);
        assert!(
            ran.stderr.contains("something is mounted below it"),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn root_has_its_own_mounts_and_network_without_a_user_namespace() {
    let Some(outside) = Outside::of_root() else {
        return;
    };
    let more = ["parent", "connect-path"];
    let attempts = [&["refuse=userns:ENOSPC"], &ESCAPES[..], &more].concat();
    let ran = outside.run("auto", &attempts);
    assert_eq!(ran.missing_parts(), ["user-namespace"], "{}", ran.stdout);
    for name in ESCAPES.iter().chain(&more) {
        assert!(REFUSED.contains(&ran.result(name)), "{}", ran.stdout);
    }
}

#[test]
fn a_directory_that_is_open_from_outside_is_found() {
    for user in users() {
        let outside = Outside::of(user);
        // What it leads to: the attempt finds the way, unless Landlock holds it.
        let ran = outside.run("auto", &["open=/usr", "parent"]);
        assert!(
            ran.missing("root").contains("the open folder /usr"),
            "{}",
            ran.stdout
        );
        assert_eq!(ran.result("parent"), "done");
        let ran = outside.run("strict", &["open=/usr", "nothing"]);
        assert_eq!(ran.status, Some(2));
        // A file is none.
        let ran = outside.run("strict", &["open=/etc/passwd", "nothing"]);
        assert_eq!(ran.level(), "full", "{}", ran.stderr);
    }
}

#[test]
fn a_process_with_more_threads_is_refused_also_where_the_kernel_does_not_say_how_many() {
    for user in users() {
        let outside = Outside::of(user);
        for refusal in ["refuse=fsopen:ENOSYS", "refuse=unshare:EPERM"] {
            let ran = outside.run("auto", &["thread=yes", refusal, "nothing"]);
            assert_eq!((ran.status, &ran.stdout[..]), (Some(2), ""), "{refusal}");
            assert!(ran.stderr.contains("there are 2 threads"), "{}", ran.stderr);
        }
    }
}

#[test]
fn r4_a_folder_is_what_its_path_led_to_once_and_nothing_else() {
    for user in users() {
        let outside = Outside::of(user);
        let folder = outside.sockets();
        for (path, why) in [
            (format!("{folder}/../x"), "is not absolute, or has `..`"),
            ("relative".to_owned(), "is not absolute, or has `..`"),
            (format!("{folder}/none"), "No such file"),
            ("/etc/passwd".to_owned(), "Not a directory"),
        ] {
            for refusal in ["refuse=netns:EPERM", "refuse=unshare:EPERM"] {
                let sockets = format!("sockets={path}");
                let ran = outside.run("auto", &[&sockets, refusal, "nothing"]);
                assert_eq!(ran.status, Some(2), "{path}: {}", ran.stdout);
                assert!(
                    ran.stderr.contains(why) && ran.stderr.contains(&path),
                    "{}",
                    ran.stderr
                );
            }
        }
    }
}

#[test]
fn from_outside_one_sees_no_capability_no_mount_no_directory_and_the_limits() {
    for user in users() {
        let outside = Outside::of(user);
        let mut running = outside.start("strict", &["files=40", "size=4096", "wait"]);
        let status = running.read("status");
        for line in [
            "CapInh:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "CapBnd:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
        ] {
            assert!(
                status.lines().any(|found| found == line),
                "{line}: {status}"
            );
        }
        let mounts = running.read("mountinfo");
        let place = |line: &str| line.split(' ').nth(4).unwrap().to_owned();
        let mut places: Vec<_> = mounts.lines().map(place).collect();
        places.sort();
        assert_eq!(places, ["/", &outside.sockets()], "{mounts}");
        for line in mounts.lines() {
            assert!(line.contains("nosuid,nodev,noexec"), "{line}");
        }
        let root = mounts.lines().find(|line| place(line) == "/").unwrap();
        assert!(root.contains(" ro,"), "{mounts}");
        let limits = running.read("limits");
        for (name, value) in [
            ("core file size", "0"),
            ("open files", "40"),
            ("file size", "4096"),
        ] {
            let line = limits
                .lines()
                .find(|line| line.starts_with(&format!("Max {name}")));
            let words: Vec<_> = line
                .unwrap()
                .split_whitespace()
                .rev()
                .skip(1)
                .take(2)
                .collect();
            assert_eq!(words, [value, value], "{limits}");
        }
        assert_eq!(running.directories(), 0);
        running.end();
    }
}

#[test]
fn limits_hold_inside() {
    let outside = Outside::of(None);
    let ran = outside.run("auto", &["files=40", "open-files"]);
    assert_eq!(ran.result("open-files"), "EMFILE");
    // SIGXFSZ, which Rust programs do not ignore.
    let ran = outside.run("auto", &["size=4096", "large-file"]);
    assert_eq!(ran.signal, Some(libc::SIGXFSZ));
}

#[test]
fn root_becomes_a_user_whose_other_processes_do_not_get_at_it() {
    let Some(outside) = Outside::of_root() else {
        return;
    };
    let mut running = outside.start("strict", &["user=61235", "wait"]);
    let status = running.read("status");
    for line in [
        "Uid:\t61235\t61235\t61235\t61235",
        "Gid:\t61235\t61235\t61235\t61235",
    ] {
        assert!(status.lines().any(|found| found == line), "{status}");
    }
    let groups = status
        .lines()
        .find(|line| line.starts_with("Groups:"))
        .unwrap();
    assert_eq!(groups.trim(), "Groups:", "{status}");
    // What belongs to root can be traced by root alone.
    assert_eq!(running.owner_of("mem"), 0);
    running.end();
    // Without a sandbox as well.
    let mut running = outside.start("off", &["user=61235", "wait"]);
    assert!(running.read("status").contains("Uid:\t61235"));
    running.end();
    // Groups that root had are gone.
    let groups = ["setpriv", "--groups", "4,20"];
    let ran = outside.run_under(&groups, "strict", &["user=61235", "groups"]);
    if let Some(ran) = ran {
        assert_eq!(ran.result("groups"), "0", "{} {}", ran.stdout, ran.stderr);
        let ran = outside.run_under(&groups, "strict", &["groups"]).unwrap();
        assert_eq!(ran.result("groups"), "2", "{} {}", ran.stdout, ran.stderr);
    }
    let ordinary = Outside::of(Some(outside::ORDINARY)).run("auto", &["user=0", "nothing"]);
    assert!(
        ordinary.stderr.contains("cannot become user 0"),
        "{}",
        ordinary.stderr
    );
}

#[test]
fn a_cgroup_is_joined_before_the_sandbox() {
    let Some(outside) = Outside::of_root() else {
        return;
    };
    let Some(cgroup) = outside::cgroup() else {
        eprintln!("SKIPPED: this machine has no cgroup of version 2 that can be written");
        return;
    };
    let path = cgroup.path().display().to_string();
    let mut running = outside.start("strict", &[&format!("cgroup={path}"), "wait"]);
    let of_process = running.read("cgroup");
    let name = cgroup.path().file_name().unwrap().to_str().unwrap();
    assert!(of_process.contains(&format!("/{name}\n")), "{of_process}");
    running.end();
}
