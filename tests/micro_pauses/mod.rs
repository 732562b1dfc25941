//! Guests whose devices work while the machine is paused and goes on again, as often as it can.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::thread::{self, JoinHandle};

use crate::common::{finish, read_until};
use crate::{SECTOR, TRANSPORTS, disk, passed, sectors, start_virtio};

/// Pauses and resumes a VM until its end; gives how often.
fn disturb(socket: &Path) -> JoinHandle<u32> {
    let mut stream = UnixStream::connect(socket).unwrap();
    thread::spawn(move || {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        lines.next();
        let mut times = 0;
        loop {
            for command in ["pause", "resume"] {
                let request = format!("{{\"command\":\"{command}\"}}\n");
                if stream.write_all(request.as_bytes()).is_err() {
                    return times;
                }
                match lines.next() {
                    Some(Ok(answer)) if answer.contains("\"ok\"") => {}
                    // It ends.
                    _ => return times,
                }
            }
            times += 1;
        }
    })
}

/// Waits until a VM that has been started listens.
fn wait_for(socket: &Path, child: &mut Child) {
    while !socket.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        thread::yield_now();
    }
}

#[test]
#[cfg(feature = "virtio-blk")]
fn a_driver_of_a_disk_notices_nothing_of_pauses() {
    let content = sectors(0, 64);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control");
    let control = format!("--control={}", socket.display());
    for transport in TRANSPORTS {
        for engine in ["io_uring", "sync"] {
            let (first, second) = (disk(&[0; 256 * SECTOR]), disk(&content));
            let disks = [
                format!(
                    "--blk={},serial=micro-1,engine={engine}",
                    first.path().display()
                ),
                format!("--blk={},ro,engine={engine}", second.path().display()),
            ];
            let arguments = [&*disks[0], &*disks[1], &*control];
            let mut child = start_virtio("virtio_blk", transport, &arguments);
            wait_for(&socket, &mut child);
            let disturbed = disturb(&socket);
            let lines = passed(finish(child));
            assert_eq!(lines.last().unwrap(), "the second one is read-only");
            assert!(disturbed.join().unwrap() > 0);
            let mut expected = vec![0; 256 * SECTOR];
            expected[16 * SECTOR..80 * SECTOR].copy_from_slice(&sectors(16, 64));
            assert!(std::fs::read(first.path()).unwrap() == expected);
        }
    }
}

#[test]
#[cfg(feature = "virtio-vsock")]
fn streams_of_sockets_survive_pauses() {
    use crate::micro_peers::{connect, echoes};
    let folder = tempfile::tempdir().unwrap();
    let (path, socket) = (folder.path().join("v"), folder.path().join("control"));
    let vsock = format!("--vsock=cid=9,path={}", path.display());
    let control = format!("--control={}", socket.display());
    for transport in TRANSPORTS {
        let mut child = start_virtio("virtio_vsock", transport, &[&vsock, &control]);
        wait_for(&socket, &mut child);
        let disturbed = disturb(&socket);
        read_until(child.stdout.as_mut().unwrap(), "cid 9\nready\n");
        let mut stream = connect(&path);
        echoes(&mut stream);
        drop(stream);
        let lines = passed(finish(child));
        assert!(lines[0].starts_with("1512 bytes echoed, then"), "{lines:?}");
        assert!(disturbed.join().unwrap() > 0);
    }
}
