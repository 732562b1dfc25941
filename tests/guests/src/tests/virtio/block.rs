//! Disks: the first one is written and read, the second one is read-only; `skip=N` is how many there are before them.

use guest::{option, println, user};
use virtio_drivers::device::blk::{BlkReq, BlkResp, RespStatus, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::{Error, Result};

use super::{BLOCK, Carrier, Device, GuestHal, devices, wait_for_interrupt};

type Disk = VirtIOBlk<GuestHal, Carrier>;

/// Sectors of a request.
const SECTORS: usize = 8;
/// The first sector that is written, and the number of requests for it and what follows.
const FIRST: usize = 16;
const REQUESTS: usize = 8;

fn disk(device: Device) -> Disk {
    Disk::new(device.transport()).expect("the driver finds a disk")
}

/// What `tests/micro_guests.rs` expects, and writes to what is read only: each byte of a sector is
/// its number plus the place in it.
fn pattern(sector: usize, bytes: &mut [u8]) {
    for (sector, bytes) in (sector..).zip(bytes.chunks_mut(SECTOR_SIZE)) {
        for (place, byte) in bytes.iter_mut().enumerate() {
            *byte = (sector + place) as u8;
        }
    }
}

pub fn run() {
    let skip = option("skip").map_or(0, |text| text.parse().expect("skip=NUMBER"));
    let mut all = devices(BLOCK).skip(skip);
    let (first, second) = (
        all.next().expect("a disk"),
        all.next().expect("a second disk"),
    );
    first.route();
    let mut disk = disk(first);
    println!("{} sectors", disk.capacity());
    let mut id = [0; 20];
    let len = disk.device_id(&mut id).expect("the serial number");
    println!(
        "serial {}",
        core::str::from_utf8(&id[..len]).expect("UTF-8")
    );
    woken(&mut disk);
    user(|| polled(&mut disk)).expect("writing and reading back");
    let beyond = disk.capacity() as usize;
    let mut sector = [0; SECTOR_SIZE];
    assert_eq!(disk.read_blocks(beyond, &mut sector), Err(Error::IoError));
    println!("written, read back and flushed");
    // A driver that ends takes its queue back, and waits until it is no longer ready.
    drop(disk);
    let mut disk = self::disk(first);
    disk.read_blocks(FIRST, &mut sector).expect("a sector");
    let mut expected = [0; SECTOR_SIZE];
    pattern(FIRST, &mut expected);
    assert!(sector == expected, "sector {FIRST} differs");
    println!("the driver ended and began again");
    read_only(second);
}

/// Requests whose ends are told by interrupts.
fn woken(disk: &mut Disk) {
    let (mut request, mut response) = (BlkReq::default(), BlkResp::default());
    // The requests until now were polled, and may have raised one.
    super::USED.store(0, core::sync::atomic::Ordering::Relaxed);
    for sector in 0..4 {
        let mut bytes = [0xff; SECTOR_SIZE];
        // SAFETY: the buffers stay, and nothing touches them, until the request has ended.
        let token = unsafe { disk.read_blocks_nb(sector, &mut request, &mut bytes, &mut response) }
            .expect("there is room in the queue");
        while disk.peek_used().is_none() {
            wait_for_interrupt();
        }
        // SAFETY: the same buffers.
        unsafe { disk.complete_read_blocks(token, &request, &mut bytes, &mut response) }
            .expect("a sector");
        assert_eq!(response.status(), RespStatus::OK);
        assert_eq!(bytes, [0; SECTOR_SIZE], "sector {sector} is empty");
    }
    println!("4 sectors read, {}", super::told());
}

fn polled(disk: &mut Disk) -> Result {
    let (mut bytes, mut back) = ([0; SECTORS * SECTOR_SIZE], [0; SECTORS * SECTOR_SIZE]);
    let places = || (0..REQUESTS).map(|request| FIRST + request * SECTORS);
    for sector in places() {
        pattern(sector, &mut bytes);
        disk.write_blocks(sector, &bytes)?;
    }
    disk.flush()?;
    for sector in places() {
        pattern(sector, &mut bytes);
        disk.read_blocks(sector, &mut back)?;
        assert!(bytes == back, "sectors from {sector} on differ");
    }
    Ok(())
}

fn read_only(device: Device) {
    let mut disk = disk(device);
    assert!(disk.readonly());
    let (mut bytes, mut expected) = ([0; SECTOR_SIZE], [0; SECTOR_SIZE]);
    assert_eq!(disk.write_blocks(1, &bytes), Err(Error::IoError));
    pattern(1, &mut expected);
    disk.read_blocks(1, &mut bytes).expect("reading");
    assert!(bytes == expected, "sector 1 has changed");
    println!("the second one is read-only");
}
