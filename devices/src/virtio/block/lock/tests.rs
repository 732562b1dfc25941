use std::fs::OpenOptions;
use std::process::Command;

use super::*;
use crate::virtio::testing::{close, output, spawn};

fn open(path: &std::path::Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

/// `None`, and a word about it, where this host has no qemu-utils.
fn qemu(program: &str, arguments: &[&str]) -> Option<bool> {
    match output(Command::new(program).args(arguments)) {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let locked = text.contains("lock");
            assert!(output.status.success() || locked, "{text}");
            Some(output.status.success())
        }
        Err(_) => {
            let allowed = std::env::var_os("CI").is_none();
            assert!(allowed, "no {program} (package qemu-utils)");
            eprintln!("skipped: no {program} (package qemu-utils)");
            None
        }
    }
}

#[test]
fn who_writes_without_locks_is_seen_by_their_like_and_keeps_nobody_away() {
    use Access::{Read, Write};
    let file = tempfile::NamedTempFile::new().unwrap();
    let [a, b, c] = [open(file.path()), open(file.path()), open(file.path())];
    assert!(!mark(&a, Read).unwrap());
    assert!(!mark(&b, Write).unwrap(), "nobody writes yet");
    assert!(!mark(&b, Write).unwrap(), "nor does another one");
    assert!(mark(&a, Read).unwrap() && mark(&a, Write).unwrap());
    assert_eq!(try_lock(&c, Write).unwrap(), Outcome::Locked);
    drop(a);
    assert!(mark(&b, Write).unwrap(), "the one with locks");
    drop(c);
    assert!(!mark(&b, Write).unwrap());
}

#[test]
fn r61_one_writer_or_many_readers_in_whatever_order() {
    use Access::{Read, Write};
    let file = tempfile::NamedTempFile::new().unwrap();
    let cases = [
        (Read, Read, Outcome::Locked),
        (Read, Write, Outcome::Refused),
        (Write, Read, Outcome::Refused),
        (Write, Write, Outcome::Refused),
    ];
    for (first, second, expected) in cases {
        let [a, b] = [open(file.path()), open(file.path())];
        assert_eq!(look(&a, first).unwrap(), Outcome::Locked, "nobody has it");
        assert_eq!(try_lock(&a, first).unwrap(), Outcome::Locked);
        // A look sees the same, and takes nothing.
        assert_eq!(look(&b, second).unwrap(), expected);
        let c = open(file.path());
        assert_eq!(look(&c, second).unwrap(), expected);
        assert_eq!(
            try_lock(&b, second).unwrap(),
            expected,
            "{first:?}, {second:?}"
        );
        // Each kind of lock alone, as others know one of them only.
        unlock(&b, second);
        flock(&a, FlockOperation::Unlock).unwrap();
        assert_eq!(
            lock_bytes(&b, second).unwrap(),
            expected,
            "bytes: {first:?}, {second:?}"
        );
        unlock(&b, second);
        assert_eq!(look(&c, second).unwrap(), expected, "bytes alone are seen");
        close(c);
        close((a, b));
        let c = open(file.path());
        assert_eq!(try_lock(&c, Write).unwrap(), Outcome::Locked, "all is gone");
    }
}

#[test]
fn r61_what_is_refused_leaves_no_lock_behind() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let [reader, writer, look] = [(); 3].map(|()| open(file.path()));
    // A reader that knows nothing of `flock`.
    for byte in Access::Read.bytes() {
        sys::share(&reader, byte, true).unwrap();
    }
    assert_eq!(try_lock(&writer, Access::Write).unwrap(), Outcome::Refused);
    close(reader);
    for byte in 0..400 {
        assert_eq!(sys::look(&look, byte).unwrap(), Byte::Free, "{byte}");
    }
    flock(&look, FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn r61_a_lock_on_the_whole_file_is_in_the_way() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let [other, ours] = [open(file.path()), open(file.path())];
    // QEMU looks for any lock on a byte, so do we.
    for byte in 0..400 {
        sys::share(&other, byte, true).unwrap();
    }
    assert_eq!(try_lock(&ours, Access::Read).unwrap(), Outcome::Refused);
}

/// Facts of QEMU 10.0: what its tools do with a disk that we have.
#[test]
fn r61_qemus_tools_keep_off_what_we_write_and_read_along_what_we_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let path = file.path().to_str().unwrap();
    let write = ["-f", "raw", "-c", "write 0 512", path];
    let read = ["-r", "-f", "raw", "-c", "read 0 512", path];
    let copy = file.path().with_extension("copy");
    let copy = [
        "convert",
        "-f",
        "raw",
        "-O",
        "raw",
        path,
        copy.to_str().unwrap(),
    ];
    let resize = ["resize", "-q", "-f", "raw", path, "2M"];
    let Some(true) = qemu("qemu-io", &write) else {
        return;
    };
    let ours = open(file.path());
    assert_eq!(try_lock(&ours, Access::Write).unwrap(), Outcome::Locked);
    assert_eq!(qemu("qemu-io", &write), Some(false), "two writers");
    assert_eq!(qemu("qemu-img", &resize), Some(false));
    assert_eq!(
        qemu("qemu-img", &copy),
        Some(false),
        "a reader and a writer"
    );
    assert_eq!(
        qemu("qemu-img", &["info", path]),
        Some(true),
        "reads nothing"
    );
    unlock(&ours, Access::Write);
    assert_eq!(try_lock(&ours, Access::Read).unwrap(), Outcome::Locked);
    assert_eq!(qemu("qemu-io", &write), Some(false));
    assert_eq!(qemu("qemu-img", &resize), Some(false));
    assert_eq!(qemu("qemu-io", &read), Some(true), "two readers");
    assert_eq!(qemu("qemu-img", &copy), Some(true));
    std::fs::remove_file(copy.last().unwrap()).unwrap();
    close(ours);
    assert_eq!(qemu("qemu-io", &write), Some(true));
}

/// And what we do with a disk that QEMU has: qemu-io with a disk open waits for its next command.
#[test]
fn r61_what_qemu_writes_is_refused_and_what_it_reads_is_used_along() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::Stdio;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    // As a reader it leaves writing to others; a QEMU with a guest on the disk does not.
    for (option, read, write) in [
        ("-n", Outcome::Refused, Outcome::Refused),
        ("-r", Outcome::Locked, Outcome::Locked),
    ] {
        let mut qemu_io = Command::new("qemu-io");
        qemu_io.args([option, "-f", "raw"]).arg(file.path());
        let child = spawn(qemu_io.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let Ok(mut child) = child else {
            assert!(std::env::var_os("CI").is_none(), "no qemu-io");
            eprintln!("skipped: no qemu-io (package qemu-utils)");
            return;
        };
        let mut input = child.stdin.take().unwrap();
        // It answers when it has the disk.
        input.write_all(b"length\n").unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert!(line.contains("MiB"), "{line}");
        for (access, expected) in [(Access::Read, read), (Access::Write, write)] {
            let ours = open(file.path());
            assert_eq!(
                try_lock(&ours, access).unwrap(),
                expected,
                "{option} {access:?}"
            );
        }
        let holders = crate::virtio::holder::of_lock(file.as_file());
        let by = crate::virtio::holder::by(&holders);
        assert!(by.contains(&format!("{} (qemu-io)", child.id())), "{by}");
        drop(input);
        child.wait().unwrap();
    }
}

#[test]
fn r61_a_disk_keeps_its_locks_over_a_reset_and_a_descriptor_is_locked_too() {
    use std::os::fd::AsRawFd;

    use crate::config::BlkConfig;
    use crate::virtio::{Block, VirtioDevice};
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    for direct in [false, true] {
        let inherited = open(file.path());
        let config = BlkConfig {
            path: format!("/dev/fd/{}", inherited.as_raw_fd()).into(),
            direct,
            ..BlkConfig::default()
        };
        let Ok(mut disk) = Block::open(&config) else {
            assert!(direct);
            eprintln!("skipped: no direct I/O on temporary files");
            return;
        };
        let other = open(file.path());
        for _ in 0..2 {
            disk.start(0);
            disk.stop();
            assert_eq!(lock_bytes(&other, Access::Read).unwrap(), Outcome::Refused);
            assert_eq!(try_lock(&other, Access::Read).unwrap(), Outcome::Refused);
        }
        close(disk);
        // The lock is that of the descriptor, which whoever opened it still has.
        assert_eq!(try_lock(&other, Access::Write).unwrap(), Outcome::Refused);
        close(inherited);
        assert_eq!(try_lock(&other, Access::Write).unwrap(), Outcome::Locked);
    }
}
