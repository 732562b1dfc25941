//! What the log tells of a VM's life, and how often.

use std::io::Read;

use crate::common::{finish, guest_image, kernel, option, print, run_code, signal, vmm};

/// The lines of a log without the level in front of them.
fn lines(log: &str) -> Vec<&str> {
    log.lines()
        .map(|line| line.split_once("] ").map_or(line, |(_, text)| text))
        .collect()
}

#[test]
fn a_start_is_told_at_the_level_debug_and_not_at_warn() {
    let code = [print("up"), crate::common::RESET.to_vec()].concat();
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(8 << 9).unwrap();
    let initrd = tempfile::NamedTempFile::new().unwrap();
    initrd.as_file().set_len(5000).unwrap();
    let options = [
        option("blk", disk.path()),
        option("initrd", initrd.path()),
        "--append=a=b".to_owned(),
        "--vcpus=2".to_owned(),
    ];
    let mut options: Vec<_> = options.iter().map(String::as_str).collect();
    assert_eq!(run_code(&code, &options).stderr, "");
    options.push("--log-level=debug");
    let ended = run_code(&code, &options);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let told = lines(&ended.stderr);
    let mut rest = told.iter();
    // In this order.
    for (start, end) in [
        ("host: Linux ", " vCPUs"),
        ("opened: disk /", ""),
        ("kernel: /", " bytes"),
        ("plan: x86_64, 2 vCPUs, 256 MiB of RAM at 0x0-", ""),
        ("plan: 16550A UART", ", GSI 4"),
        ("plan: virtio block device", ", interrupts by messages"),
        ("plan: command line: ", " a=b"),
        ("reached: the machine is planned, after ", " ms"),
        ("loaded: kernel at 0x", "protocol: 64-bit Linux"),
        ("loaded: initrd /", ", 5000 bytes"),
        ("written: ACPI tables at 0x", ""),
        ("reached: the machine can run, after ", " ms"),
        ("reached: the guest runs, after ", " ms"),
        ("end: the guest asked for a reset", ""),
    ] {
        let found = rest.any(|line| line.starts_with(start) && line.ends_with(end));
        assert!(found, "{start} … {end}: {told:#?}");
    }
    assert!(!ended.stderr.contains("WARN"), "{ended:?}");
    // No name of the program's types: those have a capital letter behind a small one.
    let text = told.join(" ").replace("MiB", "").replace("vCPU", "");
    for word in text.split(' ').filter(|word| !word.contains(['/', '='])) {
        let pairs = word.as_bytes().windows(2);
        let humps =
            pairs.filter(|pair| pair[0].is_ascii_lowercase() && pair[1].is_ascii_uppercase());
        assert_eq!(humps.count(), 0, "{word}");
    }
}

#[test]
#[cfg(all(feature = "pci", feature = "virtio-rng"))]
fn a_driver_that_is_ready_is_told_with_its_features_and_queues() {
    let kernel = option("kernel", guest_image());
    let arguments = [
        kernel.as_str(),
        "--append=test=virtio_rng virtio=pci",
        "--log-level=debug",
    ];
    let ended = finish(vmm(&arguments).spawn().unwrap());
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let told = lines(&ended.stderr);
    let ready = told.iter().find(|line| line.contains(": DRIVER_OK, 1 of "));
    let ready = ready.unwrap_or_else(|| panic!("{told:#?}"));
    assert!(
        ready.contains("features 0x") && ready.contains("queues 0 of "),
        "{ready}"
    );
}

#[test]
fn a_guest_that_resets_again_and_again_does_not_fill_the_log() {
    const STARTS: usize = 40;
    let kernel = kernel(&[print("u"), crate::common::RESET.to_vec()].concat());
    let mut child = vmm(&[
        &option("kernel", kernel.path()),
        "--on-reboot=restart",
        "--shutdown-timeout=0",
        "--log-level=debug",
    ])
    .spawn()
    .unwrap();
    let mut seen = [0; STARTS];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut seen)
        .unwrap();
    signal(&child, "TERM");
    let ended = finish(child);
    let starts = STARTS + ended.stdout.len();
    let told = lines(&ended.stderr);
    let plans = told
        .iter()
        .filter(|line| line.contains("plan: command line"))
        .count();
    // The first one, and each power of two.
    let most = usize::try_from(starts.ilog2()).unwrap() + 2;
    assert!((6..=most).contains(&plans), "{starts} starts: {told:#?}");
}
