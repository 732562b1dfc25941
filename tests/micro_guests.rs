//! The whole VMM on /dev/kvm, with the guests of `tests/guests`: each checks the machine from the
//! inside and says `EXIT 0`. And the built-in guest.

#![allow(clippy::unwrap_used)]

mod common;
#[cfg(feature = "virtio-console")]
mod micro_consoles;
mod micro_devices;
#[cfg(all(feature = "control", feature = "snapshot"))]
mod micro_forks;
mod micro_hostile;
#[cfg(feature = "control")]
mod micro_keyboard;
#[cfg(feature = "control")]
mod micro_metrics;
#[cfg(feature = "control")]
mod micro_pauses;
mod micro_peers;
#[cfg(feature = "snapshot")]
mod micro_snapshots;

use std::io::Write;
use std::process::{Child, Stdio};

use common::{
    Ended, all_close_on_exec, finish, guest_image, option, read_until, signal, vmm, wait,
};
use rustix::pipe::fcntl_setpipe_size;

/// The VMM with the guest that runs a test.
fn start(test: &str, arguments: &[&str]) -> Child {
    let kernel = option("kernel", guest_image());
    let append = format!("--append=test={test}");
    vmm(&[&[kernel.as_str(), append.as_str()], arguments].concat())
        .stdin(Stdio::piped())
        .spawn()
        .expect("the VMM's binary starts")
}

/// Runs a test to its end and expects success: the guest powers off, its last line is `EXIT 0`.
/// Gives the lines before.
fn passes(test: &str, arguments: &[&str]) -> Vec<String> {
    passed(finish(start(test, arguments)))
}

fn passed(ended: Ended) -> Vec<String> {
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let mut lines: Vec<_> = ended.stdout.lines().map(str::to_owned).collect();
    assert_eq!(lines.pop().as_deref(), Some("EXIT 0"), "{ended:?}");
    lines
}

/// Both interrupt chips, where there are two.
const LEAN: [&str; 2] = ["--lean=off", "--lean=on"];

/// Whether the machine is a PC: RAM from 0 with a hole below 4 GiB, ports, a way to crash.
fn is_pc() -> bool {
    std::env::consts::ARCH == "x86_64"
}

#[test]
fn usable_memory_is_there_once_and_nothing_follows_it() {
    let low = "0x100000-0xbfffffff type 1";
    let pc = [
        ("16", vec!["0x100000-0xffffff type 1"]),
        ("3072", vec![low]),
        ("6144", vec![low, "0x100000000-0x1bfffffff type 1"]),
    ];
    let flat = [
        ("16", vec!["0x80000000-0x80ffffff type 1"]),
        ("3072", vec!["0x80000000-0x13fffffff type 1"]),
        ("6144", vec!["0x80000000-0x1ffffffff type 1"]),
    ];
    for (mib, ends) in if is_pc() { pc } else { flat } {
        let lines = passes(
            "memory_map",
            &[
                &format!("--guest-memory={mib}"),
                "--overcommit",
                "--rng=off",
            ],
        );
        for line in ends {
            assert!(lines.iter().any(|found| found == line), "{line}: {lines:?}");
        }
        assert_eq!(
            lines.last().map(String::as_str),
            Some(&*format!("{mib} MiB usable"))
        );
    }
}

#[test]
fn every_vcpu_starts_with_the_apic_id_of_the_tables() {
    for (vcpus, lean) in [1, 2, 8].into_iter().zip(LEAN.into_iter().cycle()) {
        let lines = passes("smp", &[&format!("--vcpus={vcpus}"), lean]);
        assert_eq!(lines, [format!("{vcpus} vCPUs")]);
    }
}

/// Those with APIC ids from 255 on need messages with wider destinations, which only a lean machine has.
#[test]
fn r69_more_vcpus_than_8_bits_can_name_start_and_get_interrupts() {
    if !is_pc() {
        return;
    }
    // Id 255 stands for all as long as no vCPU has its x2APIC on, and this guest has not.
    for (vcpus, lean) in [(2, LEAN[0]), (255, LEAN[1]), (257, LEAN[1]), (300, LEAN[1])] {
        let arguments = [&format!("--vcpus={vcpus}"), "--guest-memory=64", lean];
        let lines = passes("serial_starts_last", &arguments);
        let last = format!("vCPU {} has started", vcpus - 1);
        assert_eq!(lines.last(), Some(&last), "{lines:?}");
    }
}

#[test]
fn serial_input_raises_an_interrupt_that_wakes_the_guest() {
    for lean in LEAN {
        let mut child = start("serial_echo", &[lean]);
        let mut stdin = child.stdin.take().unwrap();
        let stdout = child.stdout.as_mut().unwrap();
        read_until(stdout, "ready\n");
        for line in [
            "hello\n",
            "a second line, longer than the FIFO ................................\n",
        ] {
            stdin.write_all(line.as_bytes()).unwrap();
            read_until(stdout, &line.to_uppercase());
        }
        stdin.write_all(b"q\n").unwrap();
        assert!(passed(finish(child)).is_empty());
    }
}

#[test]
fn the_timer_ticks_asleep_and_computing() {
    let computing = if is_pc() { "in user mode" } else { "computing" };
    let computing = format!("20 ticks {computing}");
    for lean in LEAN {
        assert_eq!(passes("timer", &[lean]), ["20 ticks asleep", &computing]);
    }
}

#[test]
fn r25_any_width_and_alignment_is_legal_in_kernel_and_user_mode() {
    let printed = "printed by rep outsb";
    let pc = [printed, "kernel mode done", printed, "user mode done"];
    let expected = if is_pc() { &pc[..] } else { &["mmio done"] };
    assert_eq!(passes("io_widths", &[]), expected);
}

#[test]
fn r45_a_reset_ends_with_status_0() {
    let ended = finish(start("reset", &[]));
    assert_eq!(
        (ended.status.code(), ended.stdout.as_str()),
        (Some(0), "resetting\n"),
        "{ended:?}"
    );
}

#[test]
fn r45_a_triple_fault_in_long_mode_ends_with_status_3() {
    if !is_pc() {
        // Elsewhere an exception without a handler is taken again and again.
        return;
    }
    let ended = finish(start("triple_fault", &[]));
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    assert_eq!(ended.stdout, "faulting\n");
    for part in ["the guest crashed: vCPU 0: triple fault", "faulting"] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    // On AMD hosts the registers are gone.
    let known = ["code 0f 0b", "reset state:"].map(|text| ended.stderr.contains(text));
    assert!(known != [false, false], "{}", ended.stderr);
}

#[test]
fn r45_a_panic_that_the_guest_tells_of_ends_with_status_3_and_its_last_words() {
    let plan = plan(&[]);
    let mut devices = plan["devices"].as_array().unwrap().iter();
    let pvpanic = devices.find(|device| device["kind"] == "pvpanic").unwrap();
    let register = pvpanic["range"]["base"].as_u64().unwrap();
    let ended = finish(start(&format!("panic pvpanic={register:#x}"), &[]));
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    assert_eq!(ended.stdout, "telling of a panic\n");
    let crashed = "the guest crashed: vCPU 0: its kernel panicked, as it told through pvpanic";
    for part in [crashed, "telling of a panic"] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
}

#[test]
fn a_signal_ends_a_guest_that_computes_in_user_mode() {
    let mut child = start("spin", &["--vcpus=2"]);
    read_until(child.stdout.as_mut().unwrap(), "spinning\n");
    signal(&child, "TERM");
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn r3_a_stalled_reader_costs_output_and_never_the_guest() {
    // Nobody reads before the end: the pipe takes 4 KiB, the ring 64 KiB, the rest is dropped.
    const BYTES: usize = 81_920;
    let mut child = start(&format!("chatter bytes={BYTES}"), &[]);
    fcntl_setpipe_size(child.stdout.as_ref().unwrap(), 4096).unwrap();
    assert_eq!(wait(&mut child).code(), Some(0));
    let ended = finish(child);
    assert!(ended.stderr.contains("were dropped"), "{}", ended.stderr);
    assert!(ended.stdout.len() < BYTES, "{}", ended.stdout.len());
}

#[test]
fn a_reader_that_reads_gets_all_output_in_order() {
    let lines = passes("chatter bytes=32768", &[]);
    let text = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.";
    assert_eq!(lines, vec![text; 512]);
}

#[test]
fn a_guest_that_finds_a_fault_says_so() {
    for (test, code) in [("no-such-test", 2), ("chatter bytes=none", 1)] {
        let ended = finish(start(test, &[]));
        assert!(
            ended.stdout.ends_with(&format!("EXIT {code}\n")),
            "{ended:?}"
        );
    }
}

/// The machine that arguments give.
fn plan(arguments: &[&str]) -> serde_json::Value {
    let output = vmm(&[&["plan", "--json"], arguments].concat())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Where the VMM puts the virtio devices, for the guest's command line.
fn virtio_places(arguments: &[&str]) -> String {
    let plan = plan(arguments);
    let devices = plan["devices"].as_array().unwrap().iter();
    let places: Vec<_> = devices
        .filter(|device| device["kind"]["virtio-mmio"].is_string())
        .map(|device| {
            format!(
                "{:#x}:{}",
                device["range"]["base"].as_u64().unwrap(),
                device["irq"]
            )
        })
        .collect();
    if places.is_empty() {
        // A bus is asked for its devices.
        return "virtio=pci".to_owned();
    }
    format!("virtio={}", places.join(","))
}

/// How virtio devices reach the guest.
#[cfg(feature = "pci")]
const TRANSPORTS: [&str; 2] = ["--transport=mmio", "--transport=pci"];
#[cfg(not(feature = "pci"))]
const TRANSPORTS: [&str; 1] = ["--transport=mmio"];

/// Starts a test of virtio devices.
fn start_virtio(test: &str, transport: &str, arguments: &[&str]) -> Child {
    let arguments = [&[transport], arguments].concat();
    start(&format!("{test} {}", virtio_places(&arguments)), &arguments)
}

const SECTOR: usize = 512;

fn low_byte(number: usize) -> u8 {
    number.to_le_bytes()[0]
}

/// Sectors as the guests write them, from one on: each byte is the sector's number plus its place.
fn sectors(first: usize, count: usize) -> Vec<u8> {
    (first..first + count)
        .flat_map(|sector| (0..SECTOR).map(move |place| low_byte(sector + place)))
        .collect()
}

fn disk(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

/// Every device there is, one of them in use by the guest; the others' drivers are in tests of their own.
#[test]
#[cfg(all(
    feature = "virtio-balloon",
    feature = "virtio-blk",
    feature = "virtio-console",
    feature = "virtio-net",
    feature = "virtio-vsock"
))]
fn every_descriptor_of_a_vm_with_all_devices_is_close_on_exec() {
    let (first, second) = (disk(&[0; 8 * SECTOR]), disk(&[0; 8 * SECTOR]));
    let folder = tempfile::tempdir().unwrap();
    for transport in TRANSPORTS {
        let arguments = [
            format!("--blk={},iops=1000", first.path().display()),
            format!("--blk={},engine=sync", second.path().display()),
            format!("--net=ce{},bw=1G", std::process::id()),
            format!("--vsock=cid=9,path={}", folder.path().join("v").display()),
            "--balloon".to_owned(),
            "--console=stdio".to_owned(),
            format!("--serial=file={}", folder.path().join("serial").display()),
        ];
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let mut child = start_virtio("virtio_console", transport, &arguments);
        let mut stdin = child.stdin.take().unwrap();
        let stdout = child.stdout.as_mut().unwrap();
        read_until(stdout, "ready\n");
        stdin.write_all(b"hello\n").unwrap();
        read_until(stdout, "HELLO\n");
        all_close_on_exec(&child);
        stdin.write_all(b"q\n").unwrap();
        let ended = finish(child);
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    }
}

#[test]
#[cfg(feature = "hello-guest")]
fn the_built_in_guest_says_what_it_found_and_powers_off() {
    let many: &[_] = if is_pc() {
        &[(255, 64), (256, 64), (300, 64)]
    } else {
        &[]
    };
    for &(vcpus, mib) in [(1, 256), (3, 4096)].iter().chain(many) {
        let (vcpus_option, memory) = (format!("--vcpus={vcpus}"), format!("--guest-memory={mib}"));
        let mut command = vmm(&[&vcpus_option, &memory, "--overcommit", "--append=a=b"]);
        let ended = finish(command.spawn().unwrap());
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        let arch = std::env::consts::ARCH;
        let first = format!("hello from vmm-reference: {arch}, {vcpus} vCPUs, {mib} MiB\n");
        assert!(ended.stdout.starts_with(&first), "{ended:?}");
        assert!(ended.stdout.contains(" usable\n"), "{ended:?}");
        assert!(ended.stdout.ends_with(" a=b\n"), "{ended:?}");
    }
}

/// What a process has: threads, descriptors, its own memory (a guest's that it has touched included)
/// and its address space in KiB.
fn resources(child: &Child) -> (usize, usize, u64, u64) {
    let folder = format!("/proc/{}", child.id());
    let count = |what| {
        std::fs::read_dir(format!("{folder}/{what}"))
            .unwrap()
            .count()
    };
    let rollup = std::fs::read_to_string(format!("{folder}/smaps_rollup")).unwrap();
    let status = std::fs::read_to_string(format!("{folder}/status")).unwrap();
    let kib = |text: &str, name| {
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name));
        let number = value.and_then(|value| value.trim().strip_suffix(" kB"));
        number.unwrap().parse().unwrap()
    };
    (
        count("task"),
        count("fd"),
        kib(&rollup, "Private_Dirty:"),
        kib(&status, "VmSize:"),
    )
}

#[test]
#[cfg(all(feature = "virtio-blk", feature = "virtio-rng"))]
fn a_guest_that_reboots_starts_afresh_with_the_same_disk_and_leaks_nothing() {
    if !is_pc() {
        return;
    }
    const STARTS: usize = 12;
    let disk = disk(&[0; 8 * SECTOR]);
    let blk = format!("--blk={}", disk.path().display());
    let arguments = [blk.as_str(), "--on-reboot=restart", "--vcpus=2"];
    let places = virtio_places(&arguments);
    let test = format!("reboots starts={STARTS} {places}");
    let mut child = start(&test, &arguments);
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut seen = Vec::new();
    for number in 1..=STARTS {
        read_until(&mut stdout, &format!("start {number}\n"));
        seen.push(resources(&child));
        // Somebody else's disk it is not, at any time.
        assert!(!vmm(&[&blk]).output().unwrap().status.success());
        stdin.write_all(b"x").unwrap();
    }
    read_until(&mut stdout, "EXIT 0");
    assert_eq!(wait(&mut child).code(), Some(0));
    // The first start has not yet used what the following ones share.
    let (second, last) = (seen[1], seen[STARTS - 1]);
    assert_eq!((second.0, second.1), (last.0, last.1), "{seen:?}");
    assert!(last.2 < second.2 + 512, "{seen:?}");
    assert!(last.3 < second.3 + 65536, "{seen:?}");
    assert_eq!(usize::from(std::fs::read(disk.path()).unwrap()[0]), STARTS);
}
