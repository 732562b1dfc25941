//! The network: sends frames back to whoever sent them, until one says `q`.
//!
//! Frames are those of a local experimental EtherType; all others are left alone.

use guest::{option, println};
use virtio_drivers::device::net::VirtIONetRaw;

use super::{GuestHal, NET, device};

const QUEUE: usize = 16;
/// Local experimental EtherType 1 (IEEE 802).
const TYPE: [u8; 2] = [0x88, 0xb5];
/// Destination, source and type of a frame.
const HEADER: usize = 14;
const FRAME: usize = 2048;

pub fn run() {
    let device = device(NET);
    let mut net =
        VirtIONetRaw::<GuestHal, _, QUEUE>::new(device.transport()).expect("the driver finds it");
    let mac = net.mac_address();
    println!(
        "mac {:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}",
        mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]
    );
    // A frame of its own, for a host that waits for a sign of life.
    let mut frame = [0; FRAME];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..HEADER].copy_from_slice(&TYPE);
    frame[HEADER..HEADER + 5].copy_from_slice(b"ready");
    net.send(&frame[..60]).expect("sending");
    println!("ready");
    let wanted = option("frames").map_or(usize::MAX, |text| text.parse().expect("frames=NUMBER"));
    let mut echoed = 0;
    while echoed < wanted {
        let mut buffer = [0; FRAME];
        let (start, len) = net.receive_wait(&mut buffer).expect("receiving");
        let received = &buffer[start..start + len];
        if len < HEADER || received[12..HEADER] != TYPE {
            continue;
        }
        if received[HEADER..].starts_with(b"q") {
            break;
        }
        frame[..6].copy_from_slice(&received[6..12]);
        frame[6..12].copy_from_slice(&mac);
        frame[12..len].copy_from_slice(&received[12..]);
        net.send(&frame[..len]).expect("sending");
        echoed += 1;
    }
    println!("{echoed} frames echoed");
}
