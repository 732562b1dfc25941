//! A server over vsock, as in the example of docs/fork.md: each client sends a line and gets it back in capitals, behind
//! the number of lines that this machine has had.

use guest::println;
use virtio_drivers::device::socket::{VirtIOSocket, VsockConnectionManager, VsockEventType};

use super::{GuestHal, VSOCK, device};

const PORT: u32 = 5000;
/// The longest line, and what goes before it.
const LONGEST: usize = 256;
const NUMBER: usize = 2;

/// Serves one client after the other, without end.
pub fn run() {
    let device = device(VSOCK);
    let driver = VirtIOSocket::<GuestHal, _>::new(device.transport()).expect("the driver finds it");
    let mut sockets = VsockConnectionManager::new(driver);
    sockets.listen(PORT);
    println!("ready");
    let mut lines = 0_u8;
    let mut answer = [0; NUMBER + LONGEST];
    let mut len = NUMBER;
    loop {
        let event = sockets.wait_for_event().expect("an event");
        let (peer, port) = (event.source, event.destination.port);
        match event.event_type {
            VsockEventType::Received { .. } => {
                len += sockets
                    .recv(peer, port, &mut answer[len..])
                    .expect("receiving");
                if answer[..len].ends_with(b"\n") {
                    lines += 1;
                    answer[..NUMBER].copy_from_slice(&[b'0' + lines, b' ']);
                    answer[NUMBER..len].make_ascii_uppercase();
                    sockets.send(peer, port, &answer[..len]).expect("sending");
                    // It may have closed its side.
                    let _ = sockets.shutdown(peer, port);
                }
            }
            VsockEventType::Connected | VsockEventType::ConnectionRequest => len = NUMBER,
            _ => {}
        }
    }
}
