//! Drivers that break every rule, in a guest, on both transports.

use super::*;

/// The most memory that a process has had so far, in KiB.
fn peak_kib(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

/// What the guest says of cases that are for every transport.
#[cfg(feature = "virtio-blk")]
const HOSTILE: [&str; 17] = [
    "r7 queue and features while the device runs",
    "r7 nonsense before it runs",
    "r8 r15 changes while the device looks",
    "r10 queues that are not there",
    "r11 one head many times in flight",
    "r12 reset with reads in flight",
    "r12 reset with writes in flight",
    "r13 a queue that never is empty",
    "r14 r1 buffers beyond RAM",
    "r14 requests of a wrong size or place",
    "r16 ranges to discard and to zero",
    "r17 writes to a read-only disk",
    "r19 loops and giant chains",
    "r23 rings beyond RAM",
    "r24 status and configuration",
    "r26 r40 an index far ahead",
    "r38 buffers of no length",
];

/// What the driver did shows in the metrics, and no number is beyond what it can have done.
#[cfg(all(feature = "virtio-blk", feature = "control"))]
fn is_told(socket: &std::path::Path) {
    use crate::micro_metrics::{Client, device};
    let metrics = Client::connect(socket).metrics();
    let disk = device(&metrics, "blk0");
    for what in ["needs_resets", "drivers"] {
        let times = disk[what].as_u64().unwrap();
        assert!((1..10_000).contains(&times), "{what}: {disk}");
    }
    assert_eq!(
        disk["host_errors"], 0,
        "the driver's are not the host's: {disk}"
    );
    let read = &disk["operations"]["read"];
    let [requests, errors] = ["requests", "errors"].map(|what| read[what].as_u64().unwrap());
    assert!(0 < errors && errors < requests, "{disk}");
    assert!(requests < 10_000_000, "{disk}");
    // The other disk has one that keeps the rules.
    let other = device(&metrics, "blk1");
    assert_eq!(other["needs_resets"], 0, "{other}");
}

/// Each case is one of the guest, which checks after it that the disk answers once it was reset, and
/// that another disk serves.
#[cfg(feature = "virtio-blk")]
fn hostile_driver(transport: &str, more: &[&str]) {
    const MIB: u64 = 64;
    if !is_pc() {
        return;
    }
    let known = sectors(0, 64);
    let mut content = known.clone();
    content.resize(512 * SECTOR, 0);
    for engine in ["io_uring", "sync"] {
        let (first, second) = (disk(&content), disk(&known));
        let path = |disk: &tempfile::NamedTempFile| disk.path().display().to_string();
        let first_option = format!("--blk={},engine={engine}", path(&first));
        let second_option = format!("--blk={},ro,engine={engine}", path(&second));
        let memory = format!("--guest-memory={MIB}");
        let folder = tempfile::tempdir().unwrap();
        let control = format!("--control={}", folder.path().join("control").display());
        let mut arguments = vec![&*first_option, &*second_option, &*memory];
        if cfg!(feature = "control") {
            arguments.push(&control);
        }
        let mut child = start_virtio("virtio_hostile", transport, &arguments);
        let stdout = child.stdout.as_mut().unwrap();
        for case in HOSTILE.iter().chain(more) {
            read_until(stdout, &format!("{case}\n"));
        }
        read_until(stdout, "waiting\n");
        all_close_on_exec(&child);
        #[cfg(feature = "control")]
        is_told(&folder.path().join("control"));
        let peak = peak_kib(&child);
        assert!(peak < (MIB + 64) << 10, "{peak} KiB");
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        let ended = finish(child);
        let said = ended.stderr.lines().count();
        assert!(passed(ended).is_empty());
        assert!(said < 64, "{said} lines in the log");
        // What was written is what the guest meant to write, and only there.
        let found = std::fs::read(first.path()).unwrap();
        assert!(found[..256 * SECTOR] == content[..256 * SECTOR]);
        assert!(
            found
                .iter()
                .skip(256 * SECTOR)
                .all(|byte| [0, 0x11].contains(byte))
        );
        assert!(std::fs::read(second.path()).unwrap() == known);
    }
}

#[test]
#[cfg(feature = "virtio-blk")]
fn r1_r7_r8_r10_to_r17_r19_r23_to_r26_r38_r40_a_hostile_driver_harms_nobody_but_itself() {
    let more = [
        "r12 a queue taken back with reads in flight",
        "r25 accesses of any width",
    ];
    hostile_driver("--transport=mmio", &more);
}

#[test]
#[cfg(all(feature = "virtio-blk", feature = "pci"))]
fn r1_r7_r8_r10_to_r17_r19_r23_to_r26_r38_r40_a_hostile_driver_on_pci_harms_nobody_but_itself() {
    let more = [
        "r7 r24 the BAR through the configuration",
        "r12 reset through the configuration",
        "r24 the BAR in places of others",
        "r24 no BAR with reads in flight",
        "r12 no bus mastering with reads in flight",
        "r25 configuration of any width",
        "r25 configuration ports of any width",
        "r25 the BAR at any width",
        "r10 messages that are not there",
        "r8 messages changed while they are sent",
    ];
    hostile_driver("--transport=pci", &more);
}
