//! The virtio console of micro-guests.

use std::io::{Read, Write};

use crate::common::{finish, read_until, signal};
use crate::{TRANSPORTS, low_byte, start_virtio};

#[test]
fn an_independent_driver_echoes_on_the_console() {
    for transport in TRANSPORTS {
        let serial = tempfile::NamedTempFile::new().unwrap();
        let file = format!("--serial=file={}", serial.path().display());
        let mut child = start_virtio("virtio_console", transport, &["--console=stdio", &file]);
        let mut stdin = child.stdin.take().unwrap();
        let stdout = child.stdout.as_mut().unwrap();
        read_until(stdout, "ready\n");
        for line in ["hello\n", "one more\n"] {
            stdin.write_all(line.as_bytes()).unwrap();
            read_until(stdout, &line.to_uppercase());
        }
        stdin.write_all(b"q\n").unwrap();
        let ended = finish(child);
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        let said = std::fs::read_to_string(serial.path()).unwrap();
        assert_eq!(said, "80 columns, 25 rows\nthe console echoed\nEXIT 0\n");
    }
}

/// What the guest prints: 128 blocks of 4096 bytes, each a letter further than the one before.
fn burst() -> Vec<u8> {
    let block =
        |block: usize| (0..4096usize).map(move |place| b'a' + low_byte((block + place) % 26));
    (0..128).flat_map(block).collect()
}

#[test]
fn r58_a_burst_on_the_console_waits_for_its_reader_or_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let serial = format!("--serial=file={}", folder.path().join("serial").display());
    let file = folder.path().join("console");
    let start = |more: &[&str]| {
        let arguments = [&[serial.as_str()], more].concat();
        start_virtio("virtio_console_burst", "--transport=mmio", &arguments)
    };
    // A file takes everything.
    let child = start(&[&format!("--console=file={}", file.display())]);
    assert_eq!(finish(child).status.code(), Some(0));
    assert!(std::fs::read(&file).unwrap() == burst(), "every byte");

    // A pipe takes 64 KiB, and its reader comes when it is full.
    let wait_until_full = |stdout: &std::process::ChildStdout| {
        while rustix::io::ioctl_fionread(stdout).unwrap() < 60_000 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    let mut child = start(&["--console=stdio"]);
    let mut stdout = child.stdout.take().unwrap();
    wait_until_full(&stdout);
    let (mut printed, mut buffer) = (Vec::new(), [0; 1000]);
    loop {
        let len = stdout.read(&mut buffer).unwrap();
        if len == 0 {
            break;
        }
        printed.extend_from_slice(&buffer[..len]);
    }
    let ended = finish(child);
    assert!(printed == burst(), "every byte: {ended:?}");
    assert!(!ended.stderr.contains("dropped"), "{ended:?}");

    // A reader that is gone holds nobody up, and what it would have got is counted.
    let mut child = start(&["--console=stdio"]);
    drop(child.stdout.take());
    let ended = finish(child);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stderr.contains("its reader is gone"), "{ended:?}");
    assert!(
        ended
            .stderr
            .contains(" bytes of console output were dropped: the output was closed"),
        "{ended:?}"
    );

    // One that does not read keeps neither a guest nor a signal.
    let mut child = start(&["--console=stdio", "--shutdown-timeout=0"]);
    let stdout = child.stdout.take().unwrap();
    wait_until_full(&stdout);
    signal(&child, "TERM");
    while child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(100));
        if child.try_wait().unwrap().is_none() {
            signal(&child, "INT");
        }
    }
    let ended = finish(child);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    drop(stdout);

    // Who prefers loss has a guest that waits for nobody.
    let mut child = start(&["--console=stdio", "--console-overflow=drop"]);
    let mut stdout = child.stdout.take().unwrap();
    let serial = folder.path().join("serial");
    while !std::fs::read_to_string(&serial)
        .unwrap_or_default()
        .contains("printed")
    {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut printed = Vec::new();
    stdout.read_to_end(&mut printed).unwrap();
    let ended = finish(child);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(burst().ends_with(&printed[printed.len() - 1000..]));
    assert!(printed.len() < burst().len());
    assert!(
        ended
            .stderr
            .contains(" bytes of console output were dropped"),
        "{ended:?}"
    );
}
