use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EFD_CLOEXEC;

use super::*;
use crate::virtio::ConfigSpace;
use crate::virtio::testing::{queues, ram};

/// A device with a fault of its own.
#[derive(Debug)]
struct Faulty;

impl VirtioDevice for Faulty {
    fn id(&self) -> u32 {
        42
    }

    fn name(&self) -> &'static str {
        "faulty"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![16]
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::default()
    }

    fn serve(&mut self, _: Event, _: &mut Queues) -> Result<bool, QueueError> {
        panic!("a fault of the device")
    }
}

#[test]
fn a_worker_that_panics_marks_its_device() {
    let queues = queues(&ram(), 1);
    let interrupt = Arc::clone(&queues.interrupt);
    let bell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
    let doorbells = vec![bell.try_clone().ok()];
    let Ok(worker) = Worker::start(Activated::new(Box::new(Faulty), queues, doorbells)) else {
        panic!("no worker")
    };
    bell.write(1).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while !interrupt.needs_reset.load(Ordering::SeqCst) {
        assert!(Instant::now() < end, "the driver is never told");
        thread::yield_now();
    }
    assert_ne!(interrupt.reasons.load(Ordering::SeqCst) & CONFIG_CHANGE, 0);
    assert!(worker.stop().is_none(), "the device is lost");
}
