//! A hostile driver of the sockets between host and guest: any content of the memory of its queues,
//! while a program of the host talks too. Never a panic, and the device ends.
#![no_main]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use devices::config::VsockConfig;
use devices::virtio::{Event, GuestRam, Interrupt, Queues, Ring, VirtioDevice, Vsock};
use libfuzzer_sys::fuzz_target;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RAM: usize = 64 << 10;
static NUMBER: AtomicU32 = AtomicU32::new(0);

fuzz_target!(|data: &[u8]| {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("vmm-fuzz-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    // The number that a zero in a header's place would not have.
    let cid = 3;
    let mut vsock = Vsock::open(&VsockConfig::new(cid, &path)).expect("a socket");
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
    let mut client = UnixStream::connect(&path).expect("the device listens");
    client.set_nonblocking(true).expect("it is ours");
    let _ = client.write_all(b"CONNECT 1\ndata");
    let _ = client.write_all(&data[..len.min(64)]);
    for event in [
        Event::Source(0),
        Event::Queue(1),
        Event::Queue(0),
        Event::Source(0),
        Event::Queue(1),
    ] {
        if vsock.serve(event, &mut queues).is_err() {
            break;
        }
    }
    vsock.stop();
});
