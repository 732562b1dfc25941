//! Jails of an ordinary user, made without root's rights.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};

use common::{GID, House, Inmate, NAME, UID, begin, mounted, owner, refused};

/// Has rights on the test's /dev/kvm; an ordinary user is in it.
const KVM: u32 = 61_236;

/// A house that belongs to an ordinary user.
struct Cottage(House);

impl Cottage {
    fn new() -> Option<Self> {
        let house = House::new()?;
        chown(house.path(), Some(UID), Some(GID)).unwrap();
        chown(house.base(), Some(UID), Some(GID)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_jailer"), house.path().join("jailer")).unwrap();
        Some(Self(house))
    }

    /// What the program needs, in folders of the user's.
    fn furnish(&self, id: &str) -> PathBuf {
        let root = self.0.furnish(id);
        let own = Command::new("chown")
            .args(["-R", &format!("{UID}:{GID}")])
            .arg(self.0.base())
            .status();
        assert!(own.unwrap().success());
        root
    }

    /// Starts a program as the user, which sees devices of its own. `before`: a command of root's.
    fn command<S: AsRef<OsStr>>(&self, before: &str, program: impl Iterator<Item = S>) -> Command {
        let script = format!(
            "mount -t tmpfs -o mode=755 tmpfs /dev && mknod -m 666 /dev/null c 1 3 && \
             mknod -m 444 /dev/urandom c 1 9 && mkdir /dev/net && mknod -m 666 /dev/net/tun c 10 200 && \
             mknod -m 660 /dev/kvm c 10 232 && chgrp {KVM} /dev/kvm && {before} && \
             exec setpriv --reuid={UID} --regid={GID} --groups={KVM} \"$@\""
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh"]);
        command.args(program).stdin(Stdio::piped());
        command
    }

    fn jailer_after(&self, before: &str, id: &str, more: &[&str]) -> Command {
        let jailer = self.0.jailer(id);
        let path = self.0.path().join("jailer");
        let mut words = vec![path.as_os_str()];
        words.extend(jailer.get_args());
        words.extend(more.iter().map(OsStr::new));
        self.command(before, words.into_iter())
    }

    fn jailer(&self, id: &str, more: &[&str]) -> Command {
        self.jailer_after("true", id, more)
    }

    fn run(&self, id: &str, more: &[&str]) -> Output {
        self.jailer(id, more).output().unwrap()
    }
}

fn namespace(process: &str, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap()
}

/// The user, without any rights, in its own user namespace.
fn check_user(inmate: &Inmate) {
    for (name, number) in [("Uid", UID), ("Gid", GID)] {
        assert_eq!(inmate.status(name), vec![number.to_string(); 4], "{name}");
    }
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(inmate.status(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(inmate.status("NoNewPrivs"), ["1"]);
    for (file, number) in [("uid_map", UID), ("gid_map", GID)] {
        let map = inmate.proc(file);
        let number = number.to_string();
        let map: Vec<_> = map.split_whitespace().collect();
        assert_eq!(map, [&number, &number, "1"], "{file}");
    }
    let process = inmate.pid.to_string();
    for kind in ["user", "mnt"] {
        assert_ne!(namespace(&process, kind), namespace("self", kind), "{kind}");
    }
}

#[test]
fn an_ordinary_user_gets_the_same_jail() {
    let Some(house) = Cottage::new() else { return };
    let root = house.furnish("a");
    let (inmate, told) = begin(&mut house.jailer("a", &["--", "--api-sock", "/run/fc.sock"]));
    let says = |line: &str| {
        assert!(
            told.iter().any(|told| told == line),
            "no {line:?} in {told:?}"
        )
    };
    says("environment 0");
    says("folder Ok(\"/\")");
    for path in ["/proc/self", "/sys/kernel", "/../../../../etc/passwd"] {
        says(&format!("{path} false"));
    }
    // The group lets it open the first one; the last one can only be read, whoever asks.
    says("/dev/kvm true");
    says("/dev/net/tun true");
    says("/dev/urandom false");
    check_user(&inmate);
    let process = inmate.pid.to_string();
    assert_eq!(namespace(&process, "net"), namespace("self", "net"));
    // The root and three devices.
    let inside = inmate.proc("mountinfo");
    assert_eq!(inside.lines().count(), 4, "{inside}");
    let open: Vec<_> = inmate.open().into_iter().map(|(fd, _)| fd).collect();
    assert_eq!(open, [0, 1, 2]);

    for folder in ["", "dev", "dev/net", "run"] {
        assert_eq!(owner(&root.join(folder)), (UID, GID, 0o700), "{folder}");
    }
    let (uid, gid, mode) = owner(&root.join(NAME));
    assert_eq!((uid, gid, mode & 0o7000), (UID, GID, 0));
    assert_eq!(house.0.filed("a").pid, inmate.pid);
    // Seen from outside there is a file without anything in its place.
    assert_eq!(fs::read(root.join("dev/kvm")).unwrap(), b"");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let house_path = house.0.path().to_str().unwrap();
    assert!(!mounts.contains(house_path), "{mounts}");
}

#[test]
fn a_jail_is_not_started_twice_and_can_be_cleared_away() {
    let Some(house) = Cottage::new() else { return };
    house.furnish("a");
    let (inmate, _) = begin(&mut house.jailer("a", &[]));
    let error = refused(&house.run("a", &[]));
    assert!(
        error.contains("Failed to open") && error.contains("Text file busy"),
        "{error}"
    );
    drop(inmate);
    let error = refused(&house.run("a", &[]));
    assert!(error.contains("has not been cleared away"), "{error}");
    // By the user itself.
    let jail = house.0.jail("a");
    let clear = ["rm".as_ref(), "-r".as_ref(), jail.as_os_str()];
    let cleared = house.command("true", clear.into_iter()).output().unwrap();
    assert!(cleared.status.success(), "{cleared:?}");
    house.furnish("a");
    begin(&mut house.jailer("a", &[]));
}

#[test]
fn as_a_daemon_and_in_a_namespace_of_processes_it_is_started_too() {
    let Some(house) = Cottage::new() else { return };
    for (id, more) in [
        ("d", &["--daemonize"][..]),
        ("n", &["--new-pid-ns"]),
        ("dn", &["--daemonize", "--new-pid-ns"]),
    ] {
        house.furnish(id);
        let more = [
            more,
            &["--resource-limit", "no-file=77", "--", "--stay"][..],
        ]
        .concat();
        let mut jailer = house.jailer(id, &more);
        let status = jailer.stdout(Stdio::null()).status().unwrap();
        assert_eq!(status.code(), Some(0), "{id}");
        let inmate = house.0.filed(id);
        assert_eq!(inmate.link("exe"), Path::new("/firecracker"), "{id}");
        check_user(&inmate);
        let first = more.contains(&"--new-pid-ns");
        assert_eq!(inmate.status("NSpid").last().unwrap() == "1", first, "{id}");
        let limits = inmate.proc("limits");
        let files = limits.lines().find(|line| line.contains("open files"));
        assert_eq!(files.unwrap().matches("77").count(), 2, "{id}");
    }
}

#[test]
fn only_root_becomes_another_user() {
    let Some(house) = Cottage::new() else { return };
    let jailer = house.0.path().join("jailer");
    for (uid, gid) in [(0, 0), (UID, UID), (UID + 2, GID)] {
        let mut command = house.command(
            "true",
            [
                jailer.to_str().unwrap(),
                "--id",
                "a",
                "--uid",
                &uid.to_string(),
                "--gid",
                &gid.to_string(),
                "--exec-file",
                house.0.program().to_str().unwrap(),
                "--chroot-base-dir",
                house.0.base().to_str().unwrap(),
            ]
            .into_iter(),
        );
        let error = refused(&command.output().unwrap());
        let cure = format!(
            "{uid} and {gid}: only root becomes another user: give --uid {UID} --gid {GID}"
        );
        assert!(error.contains(&cure), "{error}");
        assert_eq!(fs::read_dir(house.0.base()).unwrap().count(), 0);
    }
}

#[test]
fn r4_r5_links_in_an_ordinary_users_jail_are_refused_and_lead_nowhere() {
    let Some(house) = Cottage::new() else { return };
    // The user could write to it: it is the jailer that does not.
    let target = house.0.path().join("target");
    fs::create_dir(&target).unwrap();
    let file = target.join("file");
    fs::write(&file, "as it was").unwrap();
    for path in [&target, &file] {
        chown(path, Some(UID), Some(GID)).unwrap();
    }
    let (before, file_before) = (owner(&target), owner(&file));
    let root = |id: &str| house.0.root(id);
    for (id, place, target) in [
        ("id", house.0.jail("id"), &target),
        ("root", root("root"), &target),
        ("dev", root("dev").join("dev"), &target),
        ("net", root("net").join("dev/net"), &target),
        ("run", root("run").join("run"), &target),
        ("kvm", root("kvm").join("dev/kvm"), &file),
        ("tun", root("tun").join("dev/net/tun"), &file),
        ("program", root("program").join(NAME), &file),
    ] {
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        symlink(target, &place).unwrap();
        house_is_own(&house);
        let error = refused(&house.run(id, &[]));
        let why = ["no link to one", "not been cleared away", "symbolic links"];
        assert!(why.iter().any(|why| error.contains(why)), "{id}: {error}");
    }
    let hard = root("hard").join(NAME);
    fs::create_dir_all(hard.parent().unwrap()).unwrap();
    fs::hard_link(&file, &hard).unwrap();
    house_is_own(&house);
    let error = refused(&house.run("hard", &[]));
    assert!(error.starts_with("Detected hard link at:"), "{error}");
    fs::remove_file(hard).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "as it was");
    assert_eq!((owner(&target), owner(&file)), (before, file_before));
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
}

/// All folders of jails, and links in them, are the user's.
fn house_is_own(house: &Cottage) {
    let own = Command::new("chown")
        .args(["-hR", &format!("{UID}:{GID}")])
        .arg(house.0.base())
        .status();
    assert!(own.unwrap().success());
}

/// A process that waits, after it has said so.
struct Waiting(Child, Option<ChildStdin>);

impl Waiting {
    fn new(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "up\n");
        let input = child.stdin.take();
        Self(child, input)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.1 = None;
        let _ = self.0.wait();
    }
}

#[test]
fn a_network_of_the_users_own_is_joined_and_no_other_one() {
    let Some(house) = Cottage::new() else { return };
    for (id, map) in [("own", "--map-current-user"), ("mapped", "--map-root-user")] {
        house.furnish(id);
        let words = [
            "unshare",
            "--user",
            map,
            "--net",
            "sh",
            "-c",
            "echo up; cat",
        ];
        let other = Waiting::new(house.command("true", words.into_iter()));
        let file = format!("/proc/{}/ns/net", other.0.id());
        let (inmate, _) = begin(&mut house.jailer(id, &["--netns", &file]));
        assert_eq!(inmate.link("ns/net"), fs::read_link(&file).unwrap(), "{id}");
        for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
            assert_eq!(inmate.status(set), ["0000000000000000"], "{set}");
        }
        assert_eq!(inmate.status("Uid"), vec![UID.to_string(); 4]);
    }
    // One of root's, where the user may look at it.
    let before = format!(
        "touch {0}/net && unshare --net mount --bind /proc/self/ns/net {0}/net",
        house.0.path().display()
    );
    let file = house.0.path().join("net");
    let more = ["--netns", file.to_str().unwrap()];
    let error = refused(&house.jailer_after(&before, "root", &more).output().unwrap());
    for part in [
        "Failed to join network namespace: netns:",
        "unshare --user --map-current-user --net",
        "as root",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!house.0.jail("root").exists());
}

#[test]
fn a_cgroup_is_made_where_one_is_delegated() {
    let Some(house) = Cottage::new() else { return };
    let Some(mount) = mounted("2") else {
        eprintln!("SKIPPED: no cgroups of version 2");
        return;
    };
    let parent = format!("vmm-jailer-test-rootless-{}", std::process::id());
    let folder = mount.join(&parent);
    let start = folder.join("start");
    fs::create_dir_all(&start).unwrap();
    for path in [folder.clone(), folder.join("cgroup.procs")] {
        chown(path, Some(UID), Some(GID)).unwrap();
    }
    let more = [
        "--cgroup-version",
        "2",
        "--parent-cgroup",
        &parent,
        "--cgroup",
        "cgroup.max.descendants=3",
    ];
    // From outside of what is delegated: the kernel does not let the user take it from there.
    let error = refused(&house.run("out", &more));
    house.furnish("in");
    let before = format!("echo $$ > {}/cgroup.procs", start.display());
    let (inmate, _) = begin(&mut house.jailer_after(&before, "in", &more));
    let made = folder.join("in");
    let limit = fs::read_to_string(made.join("cgroup.max.descendants")).unwrap();
    let inside = fs::read_to_string(made.join("cgroup.procs")).unwrap();
    let pid = inmate.pid.to_string();
    drop(inmate);
    for path in [&made, &folder.join("out"), &start, &folder] {
        fs::remove_dir(path).unwrap();
    }
    assert_eq!((limit.trim(), inside.trim()), ("3", pid.as_str()));
    for part in ["cgroup.procs", "delegated", "--parent-cgroup PATH"] {
        assert!(error.contains(part), "{error}");
    }
    // And where nothing is delegated.
    let error = refused(
        &house.run(
            "none",
            &more[..2]
                .iter()
                .chain(&more[4..])
                .copied()
                .collect::<Vec<_>>(),
        ),
    );
    assert!(error.contains("Permission denied"), "{error}");
    assert!(error.contains("delegated"), "{error}");
}

#[test]
fn a_host_without_user_namespaces_is_told_of_with_a_cure() {
    let Some(house) = Cottage::new() else { return };
    // The number is that of a user namespace, and not of the host's own one here: it allows the second one, in which
    // root looks like the user, and no third.
    let script = format!(
        "echo 1 > /proc/sys/user/max_user_namespaces && \
         exec unshare --user --map-user={UID} --map-group={GID} \"$@\""
    );
    let jailer = house.0.jailer("a");
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", &script, "sh"])
        .arg(jailer.get_program())
        .args(jailer.get_args())
        .output()
        .unwrap();
    let error = refused(&output);
    for part in [
        "Failed to make a user namespace: No space left on device",
        "user.max_user_namespaces (sysctl)",
        "as root",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(fs::read_dir(house.0.base()).unwrap().count(), 0);
}
