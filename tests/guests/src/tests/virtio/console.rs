//! The console: echoes lines in upper case until one is `q`; or prints far more than anybody keeps.

use guest::println;
use virtio_drivers::device::console::VirtIOConsole;

use super::{CONSOLE, GuestHal, device, wait_for_interrupt};

const LINE: usize = 256;

pub fn run() {
    let device = device(CONSOLE);
    device.route();
    let mut console =
        VirtIOConsole::<GuestHal, _>::new(device.transport()).expect("the driver finds it");
    let size = console.size().expect("the size").expect("the feature");
    println!("{} columns, {} rows", size.columns, size.rows);
    console.send_bytes(b"ready\n").expect("sending");
    let (mut line, mut len) = ([0; LINE], 0);
    loop {
        let Some(byte) = console.recv(true).expect("receiving") else {
            wait_for_interrupt();
            continue;
        };
        line[len] = byte.to_ascii_uppercase();
        len += 1;
        if byte == b'\n' {
            if line[..len] == *b"Q\n" {
                break;
            }
            console.send_bytes(&line[..len]).expect("sending");
            len = 0;
        }
    }
    println!("the console echoed");
}

/// What [`burst`] prints: so many blocks of so many bytes, each a letter further than the one before.
const BLOCKS: usize = 128;
const BLOCK: usize = 4096;

pub fn burst() {
    let device = device(CONSOLE);
    device.route();
    let mut console =
        VirtIOConsole::<GuestHal, _>::new(device.transport()).expect("the driver finds it");
    let mut letters = [0; BLOCK + 26];
    for (place, byte) in letters.iter_mut().enumerate() {
        *byte = b'a' + (place % 26) as u8;
    }
    for block in 0..BLOCKS {
        console
            .send_bytes(&letters[block % 26..][..BLOCK])
            .expect("sending");
    }
    println!("the console printed");
}
