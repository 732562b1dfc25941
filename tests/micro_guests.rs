//! The whole VMM on /dev/kvm, with the guests of `tests/guests`: each checks the machine from the
//! inside and says `EXIT 0`. And the built-in guest.

#![allow(clippy::unwrap_used)]

mod common;
#[cfg(feature = "virtio-console")]
mod micro_consoles;
mod micro_hostile;
#[cfg(feature = "control")]
mod micro_metrics;
#[cfg(feature = "control")]
mod micro_pauses;

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

#[test]
#[cfg(feature = "virtio-blk")]
fn an_independent_driver_uses_a_disk_and_finds_the_read_only_one_read_only() {
    let content = sectors(0, 64);
    let ways = TRANSPORTS.iter().flat_map(|transport| {
        [
            (transport, "io_uring", "--lean=off"),
            (transport, "sync", "--lean=on"),
        ]
    });
    for (transport, engine, lean) in ways {
        let (first, second) = (disk(&[0; 256 * SECTOR]), disk(&content));
        let first_option = format!(
            "--blk={},serial=micro-1,engine={engine}",
            first.path().display()
        );
        let second_option = format!("--blk={},ro,engine={engine}", second.path().display());
        let timeline = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
        let child = start_virtio(
            "virtio_blk",
            transport,
            &[
                &first_option,
                &second_option,
                lean,
                &option("boot-timeline", timeline.path()),
            ],
        );
        // Messages on aarch64 need the ITS, which the guest has no driver for.
        let has_messages = std::env::consts::ARCH != "aarch64";
        let told = if has_messages || *transport == "--transport=mmio" {
            "4 sectors read, told by interrupts"
        } else {
            "4 sectors read, polled"
        };
        assert_eq!(
            passed(finish(child)),
            [
                "256 sectors",
                "serial micro-1",
                told,
                "written, read back and flushed",
                "the driver ended and began again",
                "the second one is read-only",
            ]
        );
        let mut expected = vec![0; 256 * SECTOR];
        expected[16 * SECTOR..80 * SECTOR].copy_from_slice(&sectors(16, 64));
        assert!(std::fs::read(first.path()).unwrap() == expected);
        assert!(std::fs::read(second.path()).unwrap() == content);
        let timeline = std::fs::read_to_string(timeline.path()).unwrap();
        let (steps, missing) = timeline.split_once("\"missing\"").unwrap();
        assert!(steps.contains("first disk request"), "{timeline}");
        assert!(missing.contains("init"), "{timeline}");
    }
}

/// A guest that looks for its devices where a Linux without ACPI does.
#[test]
#[cfg(feature = "virtio-rng")]
fn r68_a_guest_without_acpi_finds_its_devices_by_its_command_line() {
    if !is_pc() {
        // Elsewhere the device tree tells.
        return;
    }
    for lean in LEAN {
        let test = "virtio_rng virtio=cmdline acpi=off -- for init";
        let lines = passes(test, &["--transport=mmio", lean]);
        assert_eq!(lines, ["random bytes, twice"]);
    }
}

#[test]
#[cfg(feature = "virtio-rng")]
fn an_independent_driver_reads_random_bytes_that_differ() {
    for transport in TRANSPORTS {
        let child = start_virtio("virtio_rng", transport, &[]);
        assert_eq!(passed(finish(child)), ["random bytes, twice"]);
    }
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

/// All frames of a network device of the host.
#[cfg(feature = "virtio-net")]
fn packet_socket(name: &str) -> std::fs::File {
    use std::os::fd::{FromRawFd, OwnedFd};
    let index = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).unwrap();
    // SAFETY: plain system calls; the address is a sockaddr_ll of its size, the descriptor is ours.
    unsafe {
        let protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        let fd = libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            protocol.into(),
        );
        assert!(fd >= 0, "a packet socket needs CAP_NET_RAW");
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET.try_into().unwrap();
        address.sll_protocol = protocol;
        address.sll_ifindex = index.trim().parse().unwrap();
        let len = size_of_val(&address).try_into().unwrap();
        assert_eq!(libc::bind(fd, (&raw const address).cast(), len), 0);
        OwnedFd::from_raw_fd(fd).into()
    }
}

#[test]
#[cfg(feature = "virtio-net")]
fn an_independent_driver_sends_frames_back() {
    use std::io::Read;
    for transport in TRANSPORTS {
        let tap = format!("mg{}", std::process::id());
        let net = format!("--net={tap},mac=02:00:00:00:00:07");
        let mut child = start_virtio("virtio_net", transport, &[&net]);
        read_until(
            child.stdout.as_mut().unwrap(),
            "mac 02:00:00:00:00:07\nready\n",
        );
        let mut host = packet_socket(&tap);
        // To the guest, from us, of a type for experiments.
        let frame = |fill: u8, len: usize| {
            let head = [2, 0, 0, 0, 0, 7, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
            let mut frame = head.to_vec();
            frame.resize(len, fill);
            frame
        };
        for (fill, len) in [(1, 60), (2, 1514), (3, 600), (4, 64)] {
            host.write_all(&frame(fill, len)).unwrap();
            let mut expected = frame(fill, len);
            expected[..12].rotate_left(6);
            loop {
                let mut buffer = [0; 2048];
                let received = host.read(&mut buffer).unwrap();
                if buffer[..received] == expected {
                    break;
                }
            }
        }
        all_close_on_exec(&child);
        host.write_all(&frame(b'q', 60)).unwrap();
        assert_eq!(passed(finish(child)), ["4 frames echoed"]);
    }
}

#[test]
#[cfg(feature = "virtio-vsock")]
fn an_independent_driver_sends_back_what_comes_through_its_sockets() {
    use std::io::Read;
    use std::os::unix::net::{UnixListener, UnixStream};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v");
    let vsock = format!("--vsock=cid=9,path={}", path.display());
    let echoes = |stream: &mut UnixStream| {
        for len in [1, 255, 256, 1000] {
            let sent: Vec<u8> = (0..len).map(low_byte).collect();
            stream.write_all(&sent).unwrap();
            let mut received = vec![0; len];
            stream.read_exact(&mut received).unwrap();
            assert!(sent == received);
        }
    };
    for transport in TRANSPORTS {
        // The host connects.
        let mut child = start_virtio("virtio_vsock", transport, &[&vsock]);
        read_until(child.stdout.as_mut().unwrap(), "cid 9\nready\n");
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"CONNECT 1234\n").unwrap();
        let mut answer = [0; 3];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"OK ");
        while answer[0] != b'\n' {
            stream.read_exact(&mut answer[..1]).unwrap();
        }
        echoes(&mut stream);
        all_close_on_exec(&child);
        drop(stream);
        let lines = passed(finish(child));
        assert!(lines[0].starts_with("1512 bytes echoed, then"), "{lines:?}");
        // The guest connects.
        let port = folder.path().join("v_5000");
        let listener = UnixListener::bind(&port).unwrap();
        let child = start_virtio("virtio_vsock connect=5000", transport, &[&vsock]);
        let mut stream = listener.accept().unwrap().0;
        echoes(&mut stream);
        all_close_on_exec(&child);
        drop(stream);
        let lines = passed(finish(child));
        let last = lines.last().map(String::as_str).unwrap_or_default();
        assert!(last.starts_with("1512 bytes echoed, then"), "{lines:?}");
        std::fs::remove_file(port).unwrap();
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
