//! A hostile driver of a balloon: any content of the memory of its queues, whatever it has negotiated, while the host
//! asks and orders. Never a panic, and what was given back was named.
#![no_main]

use std::sync::Arc;

use devices::config::BalloonConfig;
use devices::virtio::{Balloon, Event, GuestRam, Interrupt, Queues, Ring, VirtioDevice};
use devices::{Change, Hinting, Query, Report};
use libfuzzer_sys::fuzz_target;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RAM: usize = 64 << 10;
const QUEUES: u32 = 5;

fuzz_target!(|data: &[u8]| {
    let config = BalloonConfig::default()
        .with_free_page_reporting()
        .with_free_page_hinting()
        .with_stats_interval(1);
    let mut balloon = Balloon::new(&config, RAM as u64).expect("a timer");
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM)]).expect("RAM");
    // Behind what the host and the driver agree on, rings and buffers are what the input says.
    let (choice, content) = data.split_at(data.len().min(2));
    let [features, count] = [0, 1].map(|place| choice.get(place).copied().unwrap_or(0xff));
    let len = content.len().min(RAM);
    ram.write_slice(&content[..len], GuestAddress(0))
        .expect("it fits");
    let rings = (0..QUEUES).map(|number| {
        if number >= 2 + u32::from(count % 4) {
            return None;
        }
        let mut queue = Queue::new(16).expect("a queue");
        let base = 0x200 * number;
        queue.set_size(16);
        queue.set_desc_table_address(Some(base), None);
        queue.set_avail_ring_address(Some(base + 0x100), None);
        queue.set_used_ring_address(Some(base + 0x160), None);
        queue.set_event_idx(count & 4 != 0);
        queue.set_ready(true);
        Some(Ring::new(&queue, ram.clone()).expect("the rings are in RAM"))
    });
    let line = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let mut queues = Queues::new(rings.collect(), Arc::new(Interrupt::new(line)));
    balloon.start(features.into());
    let order = if count & 8 != 0 {
        Hinting::Hold
    } else {
        Hinting::Start
    };
    let _ = balloon.change(&Change::Hinting(order), Some(&queues));
    for _ in 0..2 {
        for queue in 0..QUEUES as usize {
            let served = balloon.serve(Event::Queue(queue), &mut queues);
            if served.is_err() {
                // Its thread serves nothing more, and answers questions still.
                break;
            }
        }
        for query in [Query::Statistics, Query::Hinting] {
            match balloon.query(query, Some(&mut queues)) {
                Ok(Report::Statistics(statistics)) => {
                    assert!(statistics.guest.is_none() || statistics.supported);
                }
                Ok(Report::Hinting(status)) => {
                    assert!(status.released_bytes == 0 || status.supported);
                }
                _ => {}
            }
        }
        let _ = balloon.serve(Event::Source(0), &mut queues);
    }
    let _ = balloon.close(2, &mut queues);
    balloon.stop();
    let gone = balloon.query(Query::Statistics, None);
    assert!(matches!(gone, Ok(Report::Statistics(statistics)) if statistics.guest.is_none()));
});
