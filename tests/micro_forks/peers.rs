//! Taps and sockets of forks.

use super::{Family, SMALL};
use crate::common::read_until;
use crate::{TRANSPORTS, start_virtio};

#[test]
#[cfg(feature = "virtio-net")]
fn frames_come_back_from_each_by_its_own_tap() {
    use std::io::Write;

    use crate::micro_peers::{FRAMES, comes_back, frame, packet_socket};
    // The driver uses one pair of queues whether or not the device has more.
    for (transport, queues) in TRANSPORTS.into_iter().zip([1, 2].into_iter().cycle()) {
        let taps = [0, 1, 2].map(|number| format!("mf{}-{number}", std::process::id()));
        let net = format!("--net={},mac=02:00:00:00:00:07,queues={queues}", taps[0]);
        let mut family =
            Family::new(|control| start_virtio("virtio_net", transport, &[&net, control, SMALL]));
        let stdout = family.parent().stdout.as_mut().unwrap();
        read_until(stdout, "mac 02:00:00:00:00:07\nready\n");
        for tap in &taps[1..] {
            assert!(family.forks(&[&format!("--net=id=net0,tap={tap},queues={queues}")]));
        }
        let mut hosts = taps.each_ref().map(|tap| packet_socket(tap));
        for (fill, len) in FRAMES {
            for host in &mut hosts {
                comes_back(host, fill, len);
            }
        }
        for host in &mut hosts {
            host.write_all(&frame(b'q', 60)).unwrap();
        }
        for said in family.forks_pass() {
            assert_eq!(said, "4 frames echoed\nEXIT 0\n");
        }
        assert_eq!(family.passes(), ["4 frames echoed"]);
    }
}

/// Streams stay with the machine that they were in; new ones come to each by its own socket.
#[test]
#[cfg(feature = "virtio-vsock")]
fn streams_stay_with_the_machine_that_they_are_of() {
    use crate::micro_peers::{connect, echoes};
    for transport in TRANSPORTS {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["v0", "v1", "v2"].map(|name| folder.path().join(name));
        let vsock = format!("--vsock=cid=9,path={}", paths[0].display());
        let mut family = Family::new(|control| {
            start_virtio("virtio_vsock", transport, &[&vsock, control, SMALL])
        });
        read_until(family.parent().stdout.as_mut().unwrap(), "cid 9\nready\n");
        for path in &paths[1..] {
            assert!(family.forks(&[&format!("--vsock=path={}", path.display())]));
            // It is its own: the one that it is a fork of goes on listening.
            assert!(paths[0].exists() && path.exists());
        }
        for path in &paths {
            let mut stream = connect(path);
            echoes(&mut stream);
        }
        for said in family.forks_pass() {
            assert!(said.starts_with("1512 bytes echoed, then"), "{said}");
        }
        let lines = family.passes();
        assert!(lines[0].starts_with("1512 bytes echoed, then"), "{lines:?}");
        assert!(paths.iter().all(|path| !path.exists()));
    }
}
