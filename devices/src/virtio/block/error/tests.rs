use super::*;
use crate::config::BlkEngine;
use crate::virtio::Block;
use crate::virtio::testing::{become_user, close, refuse};

fn options(path: &Path, read_only: bool) -> BlkConfig {
    BlkConfig {
        path: path.to_owned(),
        read_only,
        ..BlkConfig::default()
    }
}

/// What is said about a disk: the cause and the cure.
fn refusal(config: &BlkConfig) -> (String, String) {
    let error = Block::open(config).unwrap_err();
    let cure = error.cure();
    // No cure destroys, or asks for what is there already.
    for word in [
        "`rm", "sudo rm", " del", "mkfs", "`dd", "sudo dd", "--force",
    ] {
        assert!(!cure.contains(word), "{error}: {cure}");
    }
    assert!(
        !(config.read_only && cure.contains(",ro")),
        "{error}: {cure}"
    );
    assert!(!cure.is_empty() && !cure.contains('\n'));
    (error.to_string(), cure)
}

#[track_caller]
fn says(config: &BlkConfig, cause: &str, cure: &str) {
    let (is_cause, is_cure) = refusal(config);
    assert!(is_cause.contains(cause), "{is_cause}");
    assert!(is_cure.contains(cure), "{is_cure}");
}

#[test]
fn r64_what_is_no_image_is_named_by_its_kind() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    fs::write(path("file"), "x").unwrap();
    for read_only in [false, true] {
        let says = |path: &Path, cause, cure| says(&options(path, read_only), cause, cure);
        says(folder.path(), "a directory", "name a raw image");
        says(&path("fifo"), "a FIFO", "name a raw image");
        says(&path("socket"), "a socket", "name a raw image");
        says(Path::new("/dev/null"), "a character device", "lsblk");
        says(&path("none"), "no such file", "truncate -s 10G");
        says(Path::new("/dev/nonexistent"), "no such file", "lsblk");
        says(&path("a/b/c"), "no folder", "mkdir -p");
        let (cause, _) = refusal(&options(&path("a/b/c"), read_only));
        assert!(cause.ends_with("/a"), "the outermost: {cause}");
        says(&path("file/x"), "no folder", "check the path");
    }
}

#[test]
fn r64_who_may_not_write_hears_whose_it_is() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, mode| {
        let path = folder.path().join(name);
        fs::write(&path, [0; 512]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let (readable, private, shared) = (
        file("readable", 0o644),
        file("private", 0o600),
        file("shared", 0o660),
    );
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    if !become_user(65_534) {
        eprintln!("skipped: this user cannot become another one");
        return;
    }
    let both = |path: &Path| {
        let (cause, _) = refusal(&options(path, true));
        assert!(cause.contains("may not read it"), "{cause}");
    };
    let or = |path: &Path, list, other| if acl::usable(path) { list } else { other };
    says(
        &options(&readable, false),
        "mode 0644",
        or(
            &readable,
            "setfacl -m u:$USER:rw",
            "sudo install -m 0600 -o $USER",
        ),
    );
    says(&options(&readable, false), "root:root", "or add ,ro");
    Block::check(&options(&readable, true)).unwrap();
    both(&private);
    both(&shared);
    let (_, cure) = refusal(&options(&private, false));
    assert!(!cure.contains(",ro"), "reading is forbidden too: {cure}");
    // Root's group is none to join.
    says(
        &options(&shared, false),
        "mode 0660",
        or(
            &shared,
            "setfacl -m u:$USER:rw",
            "sudo install -m 0600 -o $USER",
        ),
    );
    says(
        &options(&closed.join("image"), false),
        "may not enter",
        or(&closed, "setfacl -m u:$USER:x", "sudo chmod o+x"),
    );
}

#[test]
fn r64_what_cannot_be_written_where_it_is_can_be_read() {
    if let Some(mount) = crate::virtio::testing::Mount::new("size=1m") {
        let path = mount.0.path().join("image");
        fs::write(&path, [0; 512]).unwrap();
        assert!(mount.again("ro"));
        says(&options(&path, false), "mounted read-only", "add ,ro");
        drop(Block::open(&options(&path, true)).unwrap());
        assert!(mount.unmount());
    }
    let config = options(Path::new("/x"), false);
    let error = BlockError::of_open(&config, io::Error::from_raw_os_error(libc::EROFS));
    assert!(matches!(error, BlockError::ReadOnly(_)), "{error}");
    assert!(error.cure().contains("add ,ro"));
    let busy = BlockError::of_open(&config, io::Error::from_raw_os_error(libc::ETXTBSY));
    assert!(!busy.cure().contains(",ro"), "{busy}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = options(file.path(), false);
    let error = BlockError::of_open(&config, io::Error::from_raw_os_error(libc::EPERM));
    assert!(error.cure().contains("chattr"), "{error}");
}

#[test]
fn r64_a_block_device_that_is_read_only_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let Some(device) = crate::virtio::testing::Loop::read_only(file.path()) else {
        eprintln!("skipped: no loop devices");
        return;
    };
    let path = Path::new(&device.path);
    says(&options(path, false), "read-only", "add ,ro");
    drop(Block::open(&options(path, true)).unwrap());
}

#[test]
fn r64_a_disk_in_use_names_who_has_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let open = |read_only| options(file.path(), read_only);
    let reader = Block::open(&open(true)).unwrap();
    says(&open(false), "by this process", "add ,ro to read along");
    close(reader);
    let writer = Block::open(&open(false)).unwrap();
    says(&open(true), "by this process", "an image of its own");
    let (_, cure) = refusal(&open(false));
    assert!(!cure.contains("add ,ro"), "it would not help: {cure}");
    close(writer);
    let _disk = Block::open(&open(false)).unwrap();
}

#[test]
fn r72_a_refusal_of_io_uring_says_by_what() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    refuse(&[libc::SYS_io_uring_setup], libc::EPERM);
    let config = BlkConfig {
        engine: BlkEngine::IoUring,
        ..options(file.path(), false)
    };
    let switch = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let by = if matches!(switch.trim(), "1" | "2") {
        "sysctl"
    } else {
        "seccomp"
    };
    says(&config, by, "engine=sync");
    for engine in [BlkEngine::Auto, BlkEngine::Sync] {
        let disk = Block::open(&BlkConfig {
            engine,
            ..config.clone()
        })
        .unwrap();
        assert!(disk.uring.is_none());
    }
    let reason = uring_reason(&io::Error::from_raw_os_error(libc::ENOSYS));
    assert!(reason.contains("CONFIG_IO_URING"), "{reason}");
}

#[test]
fn r72_a_limit_of_descriptors_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let ours = BlockError::from(io::Error::from_raw_os_error(libc::EMFILE));
    assert!(ours.cure().contains("ulimit -n"), "{ours}");
    let host = BlockError::from(io::Error::from_raw_os_error(libc::ENFILE));
    assert!(host.cure().contains("file-max"), "{host}");
    refuse(&[libc::SYS_openat], libc::EMFILE);
    let config = options(file.path(), false);
    let error = Block::open(&config).unwrap_err();
    assert!(matches!(error, BlockError::TooManyFiles(_)), "{error}");
}

#[test]
fn r64_a_file_system_without_direct_io_is_named() {
    // Attributes in sysfs are regular files of a page, and have no direct I/O.
    let path = Path::new("/sys/kernel/mm/transparent_hugepage/enabled");
    if !path.exists() {
        eprintln!("skipped: no {}", path.display());
        return;
    }
    let config = BlkConfig {
        direct: true,
        ..options(path, true)
    };
    says(&config, "direct I/O", "leave direct away");
}

#[test]
fn paths_in_commands_are_quoted_where_a_shell_needs_it() {
    assert_eq!(shell(Path::new("/a/b-1.img")), "/a/b-1.img");
    assert_eq!(shell(Path::new("/a b/c'd")), r"'/a b/c'\''d'");
}
