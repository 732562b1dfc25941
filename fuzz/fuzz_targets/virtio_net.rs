//! A hostile driver of a network device: any content of the memory of its three queues, any features.
//! Never a panic, and the device ends.
#![no_main]

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use devices::config::NetConfig;
use devices::virtio::{Event, GuestRam, Interrupt, Net, Queues, Ring, VirtioDevice};
use libfuzzer_sys::fuzz_target;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RAM: usize = 64 << 10;

fuzz_target!(|data: &[u8]| {
    let (tap, host) = UnixDatagram::pair().expect("a socket pair");
    tap.set_nonblocking(true).expect("it is ours");
    host.set_nonblocking(true).expect("it is ours");
    let mut net = Net::from_fds(vec![tap.into()], &NetConfig::default()).expect("a network device");
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM)]).expect("RAM");
    let len = data.len().min(RAM);
    ram.write_slice(&data[..len], GuestAddress(0))
        .expect("it fits");
    let flags = data.first().copied().unwrap_or_default();
    let rings = (0..3u32).map(|number| {
        let mut queue = Queue::new(16).expect("a queue");
        let base = 0x200 * number;
        queue.set_size(16);
        queue.set_desc_table_address(Some(base), None);
        queue.set_avail_ring_address(Some(base + 0x100), None);
        queue.set_used_ring_address(Some(base + 0x160), None);
        queue.set_event_idx(flags % 2 == 1);
        queue.set_ready(true);
        Some(Ring::new(&queue, ram.clone()).expect("the rings are in RAM"))
    });
    let line = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let mut queues = Queues::new(rings.collect(), Arc::new(Interrupt::new(line)));
    // MRG_RXBUF and the offloads of a driver, as the input says.
    net.start(u64::from(flags) << 8);
    for round in 0..8 {
        let _ = host.send(&data[..len.min(100 * round)]);
        let event = match round % 4 {
            3 => Event::Source(0),
            queue => Event::Queue(queue),
        };
        if net.serve(event, &mut queues).is_err() {
            break;
        }
    }
    net.stop();
});
