//! A hostile driver of a disk: any content of the queue's memory. Never a panic, never a byte
//! outside the disk.
#![no_main]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use devices::config::{BlkConfig, BlkEngine};
use devices::virtio::{Block, Event, GuestRam, Interrupt, Queues, Ring, VirtioDevice};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const DISK: u64 = 64 << 10;

fuzz_target!(|data: &[u8]| {
    let disk = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).expect("a memfd"));
    disk.set_len(DISK).expect("memory for the disk");
    let path = format!("/proc/self/fd/{}", disk.as_raw_fd());
    let mut config = BlkConfig::new(path).with_engine(BlkEngine::Sync);
    config.read_only = data.len() % 2 == 1;
    let mut block = Block::open(&config).expect("a disk");
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 64 << 10)]).expect("RAM");
    // Rings and buffers are what the input says.
    let len = data.len().min(64 << 10);
    ram.write_slice(&data[..len], GuestAddress(0))
        .expect("it fits");
    let mut queue = Queue::new(16).expect("a queue");
    queue.set_size(16);
    queue.set_desc_table_address(Some(0), None);
    queue.set_avail_ring_address(Some(0x100), None);
    queue.set_used_ring_address(Some(0x180), None);
    queue.set_event_idx(data.first().is_some_and(|byte| byte % 2 == 1));
    queue.set_ready(true);
    let ring = Ring::new(&queue, ram).expect("the rings are in RAM");
    let line = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let mut queues = Queues::new(vec![Some(ring)], Arc::new(Interrupt::new(line)));
    for _ in 0..4 {
        let rearm = |queues: &mut Queues| queues.ring(0).map(Ring::rearm).transpose();
        if block.serve(Event::Queue(0), &mut queues).is_err() || rearm(&mut queues).is_err() {
            break;
        }
    }
    assert_eq!(disk.metadata().expect("a size").len(), DISK);
});
