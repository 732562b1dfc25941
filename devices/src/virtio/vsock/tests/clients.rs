//! Programs of the host that want a connection, and the socket that they find.

use super::*;
use crate::socket::connect_to;

#[test]
fn clients_that_say_nothing_or_nonsense_bother_nobody() {
    let mut guest = guest();
    let silent: Vec<_> = (0..100)
        .map(|_| UnixStream::connect(guest.path()).unwrap())
        .collect();
    for nonsense in [
        "HELLO 1\n",
        "CONNECT x\n",
        "CONNECT 4294967296\n",
        "\n",
        &"C".repeat(40),
    ] {
        let mut client = UnixStream::connect(guest.path()).unwrap();
        client.write_all(nonsense.as_bytes()).unwrap();
        client.set_nonblocking(true).unwrap();
        loop {
            guest.serve(Event::Source(0));
            match client.read(&mut [0; 8]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Bytes beyond the longest line make it a reset.
                ended => break assert!(!matches!(ended, Ok(1..)), "{nonsense:?}"),
            }
        }
    }
    assert!(guest.device.clients.len() <= MAX_CLIENTS);
    let (mut client, host) = guest.connect_from_host();
    guest.send(host, PORT, op::RW, b"x");
    assert_eq!(read(&mut client, 1), b"x");
    drop(silent);
}

#[test]
fn a_guest_that_refuses_closes_the_client() {
    let mut guest = guest();
    let mut client = UnixStream::connect(guest.path()).unwrap();
    client.write_all(b"connect 7\n").unwrap();
    let (request, _) = guest.next();
    guest.send(request.src_port, 7, op::RST, &[]);
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn the_socket_s_file_is_taken_over_when_nobody_listens_and_goes_with_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v");
    let config = VsockConfig {
        id: None,
        cid: 3,
        path: path.clone(),
    };
    drop(UnixListener::bind(&path).unwrap());
    let first = Vsock::open(&config).unwrap();
    assert!(matches!(Vsock::open(&config), Err(SocketError::InUse)));
    close(first);
    assert!(!path.exists());
    fs::write(&path, "mine").unwrap();
    assert!(matches!(Vsock::open(&config), Err(SocketError::NoSocket)));
    assert_eq!(fs::read(&path).unwrap(), b"mine");
}

#[test]
fn a_socket_with_a_full_queue_of_callers_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let name = path.as_os_str().as_encoded_bytes();
    let callers: Vec<_> = std::iter::from_fn(|| connect_to(name).ok()).collect();
    assert!(!callers.is_empty());
    let config = VsockConfig {
        id: None,
        cid: 3,
        path,
    };
    assert!(matches!(Vsock::open(&config), Err(SocketError::InUse)));
}

#[test]
fn the_socket_s_file_stays_when_it_is_somebody_else_s() {
    let guest = guest();
    let path = guest.path();
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    close(guest.device);
    assert!(UnixStream::connect(&path).is_ok());
}
