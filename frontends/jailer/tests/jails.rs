//! Programs in jails, as they look from inside and from outside.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{GID, House, NAME, UID, mounted, owner, refused};

const STAY: [&str; 2] = ["--", "--stay"];

#[test]
fn a_program_is_another_user_with_its_folder_and_nothing_else() {
    let Some(house) = House::new() else { return };
    let root = house.furnish("a");
    // Without close-on-exec, as careless parents hand them on.
    let leaked = rustix::io::dup(rustix::stdio::stderr()).unwrap();
    let (inmate, told) = house.start("a", &["--", "--api-sock", "/run/fc.sock"]);
    drop(leaked);
    let says = |line: &str| {
        assert!(
            told.iter().any(|told| told == line),
            "no {line:?} in {told:?}"
        )
    };
    says("environment 0");
    says("folder Ok(\"/\")");
    for path in [
        "/proc/self",
        "/sys/kernel",
        "/../../../../etc/passwd",
        "/old_root",
    ] {
        says(&format!("{path} false"));
    }
    for path in ["/dev/kvm", "/dev/net/tun", "/dev/urandom"] {
        says(&format!("{path} true"));
    }
    assert!(
        told[0].starts_with(r#"arguments ["/firecracker", "--id", "a", "--start-time-us", "#),
        "{told:?}"
    );
    assert!(
        told[0].ends_with(r#""--api-sock", "/run/fc.sock"]"#),
        "{told:?}"
    );
    let (uid, gid) = (UID.to_string(), GID.to_string());
    assert_eq!(inmate.status("Uid"), [uid.as_str(); 4]);
    assert_eq!(inmate.status("Gid"), [gid.as_str(); 4]);
    assert!(inmate.status("Groups").is_empty());
    assert_eq!(inmate.status("NoNewPrivs"), ["1"]);
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(inmate.status(set), ["0000000000000000"], "{set}");
    }
    let open: Vec<_> = inmate
        .open()
        .into_iter()
        .map(|(number, _)| number)
        .collect();
    assert_eq!(open, [0, 1, 2]);
    let limits = inmate.proc("limits");
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    assert_eq!(files.matches("2048").count(), 2, "{files}");
    assert_ne!(
        inmate.link("ns/mnt"),
        fs::read_link("/proc/self/ns/mnt").unwrap()
    );
    // One mount, and what is mounted below it: nothing.
    assert_eq!(inmate.proc("mountinfo").lines().count(), 1);

    for folder in ["", "dev", "dev/net", "run"] {
        assert_eq!(owner(&root.join(folder)), (UID, GID, 0o700), "{folder}");
    }
    for device in ["dev/kvm", "dev/net/tun", "dev/urandom"] {
        assert_eq!(owner(&root.join(device)), (UID, GID, 0o600), "{device}");
    }
    let (uid, gid, mode) = owner(&root.join(NAME));
    assert_eq!((uid, gid, mode & 0o7000), (UID, GID, 0));
    assert_eq!(
        fs::read(root.join(NAME)).unwrap(),
        fs::read(house.program()).unwrap()
    );
    assert_eq!(house.filed("a").pid, inmate.pid);
}

#[test]
fn what_the_umask_takes_the_jails_user_has_nevertheless() {
    let Some(house) = House::new() else { return };
    let root = house.furnish("u");
    let (_inmate, told) = house.start_after("umask 0777", "u", &[]);
    for path in ["/dev/kvm", "/dev/net/tun", "/dev/urandom"] {
        assert!(told.contains(&format!("{path} true")), "{path}: {told:?}");
        assert_eq!(owner(&root.join(&path[1..])), (UID, GID, 0o600), "{path}");
    }
    for folder in ["", "dev", "dev/net", "run"] {
        assert_eq!(owner(&root.join(folder)), (UID, GID, 0o700), "{folder}");
    }
}

#[test]
fn in_the_background_and_in_a_namespace_of_processes_its_number_is_on_file() {
    let Some(house) = House::new() else { return };
    for (id, more) in [
        ("d", &["--daemonize"][..]),
        ("n", &["--new-pid-ns"]),
        ("dn", &["--daemonize", "--new-pid-ns"]),
    ] {
        house.furnish(id);
        // The outputs of one that is no daemon would stay open.
        let status = house
            .jailer(id)
            .args(more)
            .args(STAY)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(0), "{id}");
        let inmate = house.filed(id);
        // It runs by now, and is no jailer any more.
        assert_eq!(inmate.link("exe"), Path::new("/firecracker"), "{id}");
        let numbers = inmate.status("NSpid");
        assert_eq!(numbers[0], inmate.pid.to_string());
        match more.contains(&"--new-pid-ns") {
            true => assert_eq!(numbers[1..], ["1"], "{id}"),
            false => assert_eq!(numbers.len(), 1, "{id}"),
        }
        if more.contains(&"--daemonize") {
            // What is mounted at /dev is not seen from there.
            let null = |number| (number, PathBuf::from("/null"));
            assert_eq!(inmate.open(), [null(0), null(1), null(2)], "{id}");
            let [session, terminal] = session_and_terminal(&inmate.proc("stat"));
            // Not this test's, which is 0 if its leader is outside of this namespace of processes.
            assert_ne!(session, session_of_this_test(), "{id}");
            // It leads no session, and so gets no terminal.
            assert_ne!(session, inmate.pid.to_string(), "{id}");
            assert_eq!(terminal, "0", "{id}");
        }
    }
}

/// What /proc/PID/stat tells of both, as it stands there.
fn session_and_terminal(stat: &str) -> [String; 2] {
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<_> = fields.split_whitespace().collect();
    [fields[3].to_owned(), fields[4].to_owned()]
}

fn session_of_this_test() -> String {
    let [session, _] = session_and_terminal(&fs::read_to_string("/proc/self/stat").unwrap());
    session
}

/// As in a container: the session's leader is outside, where it has no number.
#[test]
fn in_a_session_from_outside_of_the_namespace_of_processes_it_starts_too() {
    let Some(house) = House::new() else { return };
    for (id, more) in [
        ("s", &["--daemonize"][..]),
        ("sn", &["--new-pid-ns"]),
        ("sdn", &["--daemonize", "--new-pid-ns"]),
    ] {
        house.furnish(id);
        let jailer = house.jailer(id);
        let output = Command::new("unshare")
            // The first of the namespace ends at once, and takes the others along.
            .args(["--pid", "--fork", "--kill-child", "--"])
            .arg(jailer.get_program())
            .args(jailer.get_args())
            .args(more)
            .args(STAY)
            .stdout(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*said), (Some(0), ""), "{id}");
    }
}

#[test]
fn limits_are_those_that_were_asked_for() {
    let Some(house) = House::new() else { return };
    house.furnish("l");
    // Shorter than the number of a process: the limit is the program's, not the jailer's.
    let limits = [
        "--resource-limit",
        "fsize=1",
        "--resource-limit",
        "no-file=77",
    ];
    let (inmate, _) = house.start("l", &limits);
    let limits = inmate.proc("limits");
    for (name, value) in [("Max file size", "1"), ("Max open files", "77")] {
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        let values: Vec<_> = line.split_whitespace().take(2).collect();
        assert_eq!(values, [value, value], "{name}");
    }
}

#[test]
fn a_network_namespace_is_joined() {
    let Some(house) = House::new() else { return };
    house.furnish("net");
    let mut other = Command::new("unshare")
        .args(["--net", "sh", "-c", "echo up; cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(other.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "up\n");
    let path = format!("/proc/{}/ns/net", other.id());
    let (inmate, _) = house.start("net", &["--netns", &path]);
    assert_eq!(inmate.link("ns/net"), fs::read_link(&path).unwrap());
    assert_ne!(
        inmate.link("ns/net"),
        fs::read_link("/proc/self/ns/net").unwrap()
    );
    drop(inmate);
    drop(other.stdin.take());
    other.wait().unwrap();
    let error = refused(&house.run("net2", &["--netns", "/proc/self/ns/mnt"]));
    assert!(
        error.contains("Failed to join network namespace"),
        "{error}"
    );
}

#[test]
fn a_cgroup_of_its_own_has_the_value_and_the_program() {
    let Some(house) = House::new() else { return };
    for version in ["1", "2"] {
        let has_pids = |mount: &PathBuf| {
            let controllers =
                fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
            version == "1" || controllers.split_whitespace().any(|name| name == "pids")
        };
        let Some(mount) = mounted(version).filter(has_pids) else {
            eprintln!("SKIPPED: no pids controller in cgroups of version {version}");
            continue;
        };
        let parent = format!("vmm-jailer-test-{}", std::process::id());
        let id = format!("v{version}");
        house.furnish(&id);
        let more = [
            "--cgroup-version",
            version,
            "--parent-cgroup",
            &parent,
            "--cgroup",
            "pids.max=33",
        ];
        let (inmate, _) = house.start(&id, &more);
        let folder = mount.join(&parent).join(&id);
        assert_eq!(
            fs::read_to_string(folder.join("pids.max")).unwrap().trim(),
            "33"
        );
        let inside = fs::read_to_string(folder.join("cgroup.procs")).unwrap();
        assert_eq!(inside.trim(), inmate.pid.to_string());
        drop(inmate);
        fs::remove_dir(&folder).unwrap();
        fs::remove_dir(mount.join(&parent)).unwrap();
    }
}

#[test]
fn without_values_it_joins_a_parent_of_version_2() {
    let Some(house) = House::new() else { return };
    let Some(mount) = mounted("2") else {
        eprintln!("SKIPPED: no cgroups of version 2");
        return;
    };
    let parent = format!("vmm-jailer-test-join-{}", std::process::id());
    let folder = mount.join(&parent);
    fs::create_dir(&folder).unwrap();
    house.furnish("j");
    let (inmate, _) = house.start("j", &["--cgroup-version", "2", "--parent-cgroup", &parent]);
    let inside = fs::read_to_string(folder.join("cgroup.procs")).unwrap();
    assert_eq!(inside.trim(), inmate.pid.to_string());
    drop(inmate);
    fs::remove_dir(&folder).unwrap();
}

#[test]
fn a_hundred_jails_leave_nothing_but_their_folders() {
    let Some(house) = House::new() else { return };
    let pids = mounted("1");
    let parent = format!("vmm-jailer-test-many-{}", std::process::id());
    let cgroup = ["--parent-cgroup", &parent, "--cgroup", "pids.max=9"];
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    for round in 0..100 {
        let id = format!("r{round}");
        let root = house.furnish(&id);
        let more = if pids.is_some() { &cgroup[..] } else { &[] };
        let mut jailer = house.jailer(&id);
        jailer
            .args(more)
            .args(["--daemonize", "--new-pid-ns"])
            .args(STAY);
        let output = jailer.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        drop(house.filed(&id));
        let mut left: Vec<_> = fs::read_dir(&root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.retain(|name| !name.starts_with("lib") && name != "usr");
        left.sort();
        assert_eq!(left, ["dev", NAME, "firecracker.pid", "run"]);
        // As clients clear away; what is mounted or in use would be refused.
        fs::remove_dir_all(house.jail(&id)).unwrap();
        if let Some(mount) = &pids {
            fs::remove_dir(mount.join(&parent).join(&id)).unwrap();
        }
    }
    if let Some(mount) = &pids {
        fs::remove_dir(mount.join(&parent)).unwrap();
    }
    assert_eq!(fs::read_dir(house.base().join(NAME)).unwrap().count(), 0);
    let mine = house.path().display().to_string();
    assert!(
        !mounts().contains(&mine) && !before.contains(&mine),
        "{}",
        mounts()
    );
}
