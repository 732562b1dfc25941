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

/// As Kata starts its guests: no ACPI, no PCI. The I/O APIC is where the MP table says, and a driver's interrupts are
/// those that the command line names.
#[test]
#[cfg(feature = "virtio-blk")]
fn a_guest_without_acpi_and_pci_has_interrupts_of_its_disks_by_the_mp_table() {
    if !is_pc() {
        return;
    }
    let content = sectors(0, 64);
    // Placeholders before the disks: these have interrupts then that no PIC has.
    const PLACEHOLDERS: usize = 8;
    for lean in LEAN {
        let files: Vec<_> = (0..PLACEHOLDERS).map(|_| disk(&[])).collect();
        let (first, second) = (disk(&[0; 256 * SECTOR]), disk(&content));
        let placeholders = files
            .iter()
            .map(|file| format!("--blk={},engine=sync", file.path().display()));
        let placeholders: Vec<_> = placeholders.collect();
        let first_option = format!("--blk={},serial=micro-1", first.path().display());
        let second_option = format!("--blk={},ro", second.path().display());
        for skip in [0, PLACEHOLDERS] {
            first.as_file().set_len(0).unwrap();
            first.as_file().set_len(256 * SECTOR as u64).unwrap();
            let before = placeholders.iter().take(skip).map(String::as_str);
            let arguments = ["--transport=mmio", lean, "--rng=off"].into_iter();
            let arguments = arguments.chain(before);
            let arguments: Vec<_> = arguments.chain([&*first_option, &*second_option]).collect();
            let test = format!("virtio_blk virtio=cmdline skip={skip} acpi=off pci=off");
            let lines = passes(&test, &arguments);
            assert_eq!(lines[2], "4 sectors read, told by interrupts");
            assert_eq!(lines.last().unwrap(), "the second one is read-only");
        }
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

#[test]
#[cfg(feature = "virtio-net")]
fn an_independent_driver_sends_frames_back() {
    use crate::micro_peers::{FRAMES, comes_back, frame, packet_socket};
    for transport in TRANSPORTS {
        let tap = format!("mg{}", std::process::id());
        let net = format!("--net={tap},mac=02:00:00:00:00:07");
        let mut child = start_virtio("virtio_net", transport, &[&net]);
        read_until(
            child.stdout.as_mut().unwrap(),
            "mac 02:00:00:00:00:07\nready\n",
        );
        let mut host = packet_socket(&tap);
        for (fill, len) in FRAMES {
            comes_back(&mut host, fill, len);
        }
        all_close_on_exec(&child);
        host.write_all(&frame(b'q', 60)).unwrap();
        assert_eq!(passed(finish(child)), ["4 frames echoed"]);
    }
}

#[test]
#[cfg(feature = "virtio-vsock")]
fn an_independent_driver_sends_back_what_comes_through_its_sockets() {
    use crate::micro_peers::{connect, echoes};
    use std::os::unix::net::UnixListener;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v");
    let vsock = format!("--vsock=cid=9,path={}", path.display());
    for transport in TRANSPORTS {
        // The host connects.
        let mut child = start_virtio("virtio_vsock", transport, &[&vsock]);
        read_until(child.stdout.as_mut().unwrap(), "cid 9\nready\n");
        let mut stream = connect(&path);
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
