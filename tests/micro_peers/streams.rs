//! Streams to a guest that sends back what comes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::low_byte;

/// Connects to the port of the test guest, which has accepted it then.
pub(crate) fn connect(path: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(b"CONNECT 1234\n").unwrap();
    let mut answer = [0; 3];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK ");
    while answer[0] != b'\n' {
        stream.read_exact(&mut answer[..1]).unwrap();
    }
    stream
}

/// 1512 bytes go and come back.
pub(crate) fn echoes(stream: &mut UnixStream) {
    for len in [1, 255, 256, 1000] {
        let sent: Vec<u8> = (0..len).map(low_byte).collect();
        stream.write_all(&sent).unwrap();
        let mut received = vec![0; len];
        stream.read_exact(&mut received).unwrap();
        assert!(sent == received);
    }
}
