//! Frames that a guest sends back.

use std::io::{Read, Write};

/// Fill and length of those that the test guest sends back before its last one.
pub(crate) const FRAMES: [(u8, usize); 4] = [(1, 60), (2, 1514), (3, 600), (4, 64)];

/// All frames of a network device of the host.
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

/// To the guest, from us, of a type for experiments.
pub(crate) fn frame(fill: u8, len: usize) -> Vec<u8> {
    let head = [2, 0, 0, 0, 0, 7, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
    let mut frame = head.to_vec();
    frame.resize(len, fill);
    frame
}

/// Sends a frame, and waits until it comes back with its addresses exchanged.
pub(crate) fn comes_back(host: &mut std::fs::File, fill: u8, len: usize) {
    host.write_all(&frame(fill, len)).unwrap();
    let mut expected = frame(fill, len);
    expected[..12].rotate_left(6);
    let mut buffer = vec![0; 2048];
    let mut received = 0;
    while buffer[..received] != expected {
        received = host.read(&mut buffer).unwrap();
    }
}
