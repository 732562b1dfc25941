//! A guest that resets again and again: the disk counts, memory begins anew.

use core::sync::atomic::{AtomicU32, Ordering};

use guest::machine::{port_in, port_out};
use guest::serial::{DATA, READY, STATUS};
use guest::{option, println};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};

use super::{BLOCK, GuestHal, device};

/// Zero in memory that nobody has used.
static USED: AtomicU32 = AtomicU32::new(0);

/// Counts its starts in the disk's first sector, says the number, waits for a byte of input, and
/// resets until there were `starts`.
pub fn run() {
    assert_eq!(USED.swap(1, Ordering::Relaxed), 0, "memory is not fresh");
    let mut disk = VirtIOBlk::<GuestHal, _>::new(device(BLOCK).transport()).expect("a disk");
    let mut sector = [0; SECTOR_SIZE];
    disk.read_blocks(0, &mut sector).expect("the counter");
    let start = sector[0] + 1;
    sector[0] = start;
    disk.write_blocks(0, &sector).expect("the counter");
    println!("start {start}");
    while port_in(STATUS) & READY == 0 {}
    port_in(DATA);
    if Some(start) != option("starts").and_then(|starts| starts.parse().ok()) {
        // The driver does not end: the device runs when the reset comes.
        core::mem::forget(disk);
        port_out(0x64, 0xfe);
        panic!("still running after the reset");
    }
}
