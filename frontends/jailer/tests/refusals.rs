//! Starts that have to fail, and folders that somebody has prepared for the jailer.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{GID, House, NAME, UID, owner, refused};

#[test]
fn what_is_wrong_with_paths_is_said_as_clients_expect_it() {
    let Some(house) = House::new() else { return };
    let none = house.path().join("none");
    let folder = house.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let run = |program: &Path, base: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jailer"));
        command
            .args(["--id", "a", "--uid", "1", "--gid", "1", "--exec-file"])
            .arg(program);
        refused(&command.arg("--chroot-base-dir").arg(base).output().unwrap())
    };
    let error = run(&none, &house.base());
    assert!(
        error.starts_with(&format!("Failed to canonicalize path {}:", none.display())),
        "{error}"
    );
    let error = run(&folder, &house.base());
    assert!(
        error.contains(&format!("{} is not a file", folder.display())),
        "{error}"
    );
    let error = run(&house.program(), &none);
    assert!(error.starts_with("Failed to canonicalize path"), "{error}");
    let error = run(&house.program(), &house.program());
    assert!(error.contains("is not a directory"), "{error}");
    let error = refused(&house.run("a", &["--netns", none.to_str().unwrap()]));
    assert!(error.contains(none.to_str().unwrap()), "{error}");
}

#[test]
fn a_program_that_cannot_run_is_told_of_by_the_jailer_itself() {
    let Some(house) = House::new() else { return };
    fs::write(house.program(), "no program").unwrap();
    fs::set_permissions(house.program(), fs::Permissions::from_mode(0o644)).unwrap();
    for (id, more) in [
        ("f", &[][..]),
        ("d", &["--daemonize"]),
        ("n", &["--new-pid-ns"]),
        ("dn", &["--daemonize", "--new-pid-ns"]),
    ] {
        let error = refused(&house.run(id, more));
        assert!(
            error.starts_with("Failed to exec into /firecracker: Permission denied"),
            "{id}: {error}"
        );
    }
}

#[test]
fn a_jail_that_is_in_use_stays_as_it_is() {
    let Some(house) = House::new() else { return };
    let root = house.furnish("a");
    let (inmate, _) = house.start("a", &[]);
    let error = refused(&house.run("a", &[]));
    assert!(
        error.contains("Failed to open") && error.contains("Text file busy"),
        "{error}"
    );
    assert_eq!(owner(&root), (UID, GID, 0o700));
    drop(inmate);
    // Afterwards it is still not taken for a new one.
    let error = refused(&house.run("a", &[]));
    assert!(
        error.contains("/dev/net/tun") && error.contains("not been cleared away"),
        "{error}"
    );
    assert_eq!(owner(&root), (UID, GID, 0o700));
}

#[test]
fn r4_links_in_place_of_the_program_are_refused_and_their_targets_stay_as_they_are() {
    let Some(house) = House::new() else { return };
    let target = house.path().join("target");
    fs::write(&target, "as it was").unwrap();
    let before = owner(&target);
    let place = |id: &str| {
        fs::create_dir_all(house.root(id)).unwrap();
        house.root(id).join(NAME)
    };
    symlink(&target, place("s")).unwrap();
    let error = refused(&house.run("s", &[]));
    let named = format!("Failed to open {}", house.root("s").join(NAME).display());
    assert!(error.starts_with(&named), "{error}");
    fs::hard_link(&target, place("h")).unwrap();
    let error = refused(&house.run("h", &[]));
    let named = format!(
        "Detected hard link at: {}",
        house.root("h").join(NAME).display()
    );
    assert!(error.starts_with(&named), "{error}");
    // A FIFO would have it wait for a reader.
    let mkfifo = Command::new("mkfifo").arg(place("f")).status().unwrap();
    assert!(mkfifo.success());
    refused(&house.run("f", &[]));
    fs::create_dir(place("d")).unwrap();
    refused(&house.run("d", &[]));
    assert_eq!(fs::read_to_string(&target).unwrap(), "as it was");
    assert_eq!(owner(&target), before);
}

#[test]
fn r4_links_in_place_of_folders_are_refused_and_lead_nowhere() {
    let Some(house) = House::new() else { return };
    let target = house.path().join("target");
    fs::create_dir(&target).unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o750)).unwrap();
    let link = |path: &Path| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(&target, path).unwrap();
    };
    link(&house.jail("id"));
    link(&house.root("root"));
    link(&house.root("dev").join("dev"));
    link(&house.root("net").join("dev/net"));
    link(&house.root("run").join("run"));
    for id in ["id", "root", "dev", "net", "run"] {
        let error = refused(&house.run(id, &[]));
        assert!(error.contains("no link to one"), "{id}: {error}");
        assert_eq!(owner(&target), (0, 0, 0o750), "{id}");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "{id}");
    }
    // Nor does a link get the device's owner, or the number of the process.
    let file = house.path().join("file");
    fs::write(&file, "as it was").unwrap();
    let root = house.furnish("pid");
    symlink(&file, root.join("firecracker.pid")).unwrap();
    refused(&house.run("pid", &[]));
    fs::create_dir_all(house.root("kvm").join("dev")).unwrap();
    symlink(&file, house.root("kvm").join("dev/kvm")).unwrap();
    refused(&house.run("kvm", &[]));
    assert_eq!(fs::read_to_string(&file).unwrap(), "as it was");
    assert_eq!(owner(&file).0, 0);
}

/// The jail's user exchanges what is in its folder, over and over, while jailers work in there.
#[test]
fn r4_r5_a_user_who_exchanges_folders_and_devices_meanwhile_is_given_nothing() {
    let Some(house) = House::new() else { return };
    let target = house.path().join("target");
    fs::create_dir(&target).unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["kvm", "tun", "net"] {
        fs::write(target.join(name), "as it was").unwrap();
    }
    let root = house.root("a");
    let prepare = || {
        fs::create_dir_all(&root).unwrap();
        chown(&root, Some(UID), Some(GID)).unwrap();
    };
    prepare();
    let attacker = house.path().join("attacker");
    fs::rename(house.program(), &attacker).unwrap();
    // What is in it does not matter: none of them gets that far, or it is no program.
    fs::write(house.program(), "no program").unwrap();
    let mut attacker = Command::new(attacker);
    attacker
        .arg("--attack")
        .arg(&root)
        .arg(&target)
        .uid(UID)
        .gid(GID);
    let attacker = attacker.stdout(Stdio::piped()).spawn().unwrap();
    let mut attacker = Attacker(attacker);
    let mut up = [0; 3];
    attacker
        .0
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut up)
        .unwrap();
    for round in 0..200 {
        let error = refused(&house.run("a", &[]));
        assert_eq!(owner(&target), (0, 0, 0o755), "{error}");
        for name in ["kvm", "tun", "net"] {
            assert_eq!(owner(&target.join(name)), (0, 0, 0o644), "{error}");
            assert_eq!(fs::read_to_string(target.join(name)).unwrap(), "as it was");
        }
        assert_eq!(fs::read_dir(&target).unwrap().count(), 3, "{error}");
        // Out of the attacker's reach.
        fs::rename(house.jail("a"), house.path().join(format!("old-{round}"))).unwrap();
        prepare();
    }
    let ended = attacker.0.try_wait().unwrap();
    assert!(ended.is_none(), "nobody has attacked: {ended:?}");
}

/// Ends whatever becomes of the test.
struct Attacker(Child);

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
