//! vsock: connects to a port of the host, or waits for the host, and sends back what comes until
//! the host closes.

use guest::{option, println};
use virtio_drivers::device::socket::{
    VMADDR_CID_HOST, VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEventType,
};

use super::{GuestHal, VSOCK, device};

/// The port that the host may connect to, and the own one of connections to the host.
const PORT: u32 = 1234;
const CHUNK: usize = 256;

/// `connect=PORT`: the guest connects; otherwise it listens.
pub fn run() {
    let device = device(VSOCK);
    let driver = VirtIOSocket::<GuestHal, _>::new(device.transport()).expect("the driver finds it");
    let mut sockets = VsockConnectionManager::new(driver);
    println!("cid {}", sockets.guest_cid());
    match option("connect") {
        Some(port) => {
            let peer = VsockAddr {
                cid: VMADDR_CID_HOST,
                port: port.parse().expect("connect=PORT"),
            };
            sockets.connect(peer, PORT).expect("a request");
        }
        None => sockets.listen(PORT),
    }
    println!("ready");
    let mut echoed = 0;
    loop {
        let event = sockets.wait_for_event().expect("an event");
        let (peer, port) = (event.source, event.destination.port);
        match event.event_type {
            VsockEventType::Received { .. } => loop {
                let mut bytes = [0; CHUNK];
                let len = sockets.recv(peer, port, &mut bytes).expect("receiving");
                if len == 0 {
                    break;
                }
                // A peer without room gets it when there is some: these tests send little.
                sockets.send(peer, port, &bytes[..len]).expect("sending");
                echoed += len;
            },
            VsockEventType::Disconnected { reason } => {
                println!("{echoed} bytes echoed, then {reason:?}");
                break;
            }
            _ => {}
        }
    }
}
