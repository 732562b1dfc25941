//! virtio devices as a driver that is not ours finds and uses them, over both transports.

use super::*;

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

/// All frames of a network device of the host.
#[cfg(feature = "virtio-net")]
pub(crate) fn packet_socket(name: &str) -> std::fs::File {
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
