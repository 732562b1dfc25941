//! The guest of clients that know nothing of tests: it takes every device of the command line into use, gives a balloon
//! what the host asks for, writes a sector of each disk that it may write, and sleeps until Ctrl-Alt-Del.

use core::cell::UnsafeCell;
use core::mem;

use guest::{irq, println, user};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};

use super::balloon::{ACTUAL, INFLATE, WANTED};
use super::{BALLOON, BLOCK, CONSOLE, Carrier, GuestHal, NET, RNG, VSOCK, devices};
use crate::tests::keyboard;

pub const VERSION_1: u64 = 1 << 32;
const QUEUE: usize = 4;
/// More than a device here has.
const QUEUES: u16 = 8;

/// Of a balloon (VIRTIO 1.3, 5.5.3): its driver tells statistics, hints at free pages, reports them. With all
/// three the queues have the numbers of 5.5.2.
const BALLOON_FEATURES: u64 = 1 << 1 | 1 << 3 | 1 << 5;
const STATISTICS: u16 = 2;
/// The tag of free memory, and 64 MiB of it.
const FREE_MEMORY: [u8; 10] = [4, 0, 0, 0, 0, 4, 0, 0, 0, 0];
/// Page numbers of a request, 1 MiB of memory, and the first page that the host gets: the image is far below.
const AT_ONCE: usize = 256;
const FIRST_PAGE: usize = 32 << 20 >> 12;

type Queue = VirtQueue<GuestHal, QUEUE>;

struct Pages(UnsafeCell<[u8; 4 * AT_ONCE]>);

// SAFETY: one vCPU runs, and there is one balloon.
unsafe impl Sync for Pages {}

static PAGES: Pages = Pages(UnsafeCell::new([0; 4 * AT_ONCE]));

pub fn run() {
    println!("up");
    keyboard::listen();
    user(|| {
        for kind in [NET, CONSOLE, RNG, VSOCK] {
            devices(kind).for_each(|device| mem::forget(start(device.transport(), VERSION_1)));
        }
        devices(BLOCK).for_each(|device| write(device.transport()));
        devices(BALLOON).for_each(|device| inflate(device.transport()));
    });
    println!("idle");
    loop {
        irq::wait();
    }
}

/// Resets a device and agrees on those of the features that it has.
pub fn begin(transport: &mut Carrier, wanted: u64) {
    transport.set_status(DeviceStatus::empty());
    transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    let features = transport.read_device_features() & wanted;
    transport.write_driver_features(features);
    transport
        .set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK);
}

/// Starts a device with all of its queues, which are empty. The end of a transport resets its device.
fn start(mut transport: Carrier, wanted: u64) -> (Carrier, [Option<Queue>; QUEUES as usize]) {
    begin(&mut transport, wanted);
    let queues = core::array::from_fn(|number| {
        let number = number as u16;
        (transport.max_queue_size(number) > 0).then(|| {
            Queue::new(&mut transport, number, false, false).expect("the device has the queue")
        })
    });
    transport.finish_init();
    (transport, queues)
}

/// Writes the last sector.
fn write(transport: Carrier) {
    let mut disk = VirtIOBlk::<GuestHal, _>::new(transport).expect("the driver finds a disk");
    if let Some(last) = disk.capacity().checked_sub(1)
        && !disk.readonly()
    {
        disk.write_blocks(last as usize, &[0; SECTOR_SIZE])
            .expect("a sector is written");
    }
    mem::forget(disk);
}

fn inflate(transport: Carrier) {
    let (mut transport, mut queues) = start(transport, VERSION_1 | BALLOON_FEATURES);
    if let Some(queue) = &mut queues[usize::from(STATISTICS)] {
        // SAFETY: the static stays, and nobody writes it.
        unsafe { queue.add(&[&FREE_MEMORY], &mut []) }.expect("there is room in the queue");
        transport.notify(STATISTICS);
    }
    let queue = queues[usize::from(INFLATE)].as_mut();
    let queue = queue.expect("a balloon has a queue for pages");
    let wanted: u32 = transport
        .read_config_space(WANTED)
        .expect("the configuration");
    let mut given = 0;
    while given + AT_ONCE <= wanted as usize {
        // SAFETY: the device has given the buffer back.
        let pages = unsafe { &mut *PAGES.0.get() };
        for (number, place) in (FIRST_PAGE + given..).zip(pages.chunks_exact_mut(4)) {
            place.copy_from_slice(&(number as u32).to_le_bytes());
        }
        queue
            .add_notify_wait_pop(&[pages], &mut [], &mut transport)
            .expect("the device takes it");
        given += AT_ONCE;
        transport
            .write_config_space(ACTUAL, given as u32)
            .expect("the configuration");
    }
    println!("given {given}");
    mem::forget(transport);
}
