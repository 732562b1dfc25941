use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EFD_CLOEXEC;

use super::*;
use crate::virtio::interrupt::CONFIG_CHANGE;
use crate::virtio::testing::{DATA, Driver, SIZE, Sink, queues, ram};
use crate::virtio::{ConfigSpace, Notice};

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
    let (ear, heard) = mpsc::channel();
    let listener = Arc::new(move |notice| ear.send(notice).unwrap());
    interrupt.monitor.notices.listen(listener);
    let bell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
    let doorbells = vec![bell.try_clone().ok()];
    let mut worker = started(Activated::new(Box::new(Faulty), queues, doorbells));
    bell.write(1).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while interrupt.reasons.load(Ordering::SeqCst) & CONFIG_CHANGE == 0 {
        assert!(Instant::now() < end, "the driver is never told");
        thread::yield_now();
    }
    assert!(interrupt.needs_reset.load(Ordering::SeqCst));
    assert!(interrupt.lost.load(Ordering::SeqCst));
    let Notice::Lost { cause } = heard.recv().unwrap() else {
        panic!("another notice")
    };
    assert!(cause.contains("a fault of the VMM"), "{cause}");
    assert!(worker.stop().is_none(), "the device is lost");
    let next = Activated::new(Box::new(Faulty), self::queues(&ram(), 1), vec![None]);
    assert!(!worker.start(next), "and with it the thread");
}

fn started(activated: Activated) -> Worker {
    let mut worker = Worker::new("test", &Threads::default()).unwrap();
    assert!(worker.start(activated));
    worker
}

/// What comes back next.
fn used(driver: &mut Driver) -> usize {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let used = driver.used().len();
        if used > 0 {
            return used;
        }
        assert!(Instant::now() < end, "nothing comes back");
        thread::yield_now();
    }
}

#[test]
fn what_is_queued_while_a_device_is_paused_is_served_when_it_goes_on() {
    let ram = ram();
    let mut driver = Driver::new(&ram);
    let bell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
    let mut activated = Activated::new(
        Box::<Sink>::default(),
        queues(&ram, 2),
        vec![bell.try_clone().ok(), None],
    );
    // More often than the queue has entries, so that its indices go round.
    let mut worker = Worker::new("test", &Threads::default()).unwrap();
    for _ in 0..2 * SIZE {
        assert!(worker.start(activated));
        driver.request(&[(DATA, 8, true)]);
        bell.write(1).unwrap();
        assert_eq!(used(&mut driver), 1);
        activated = worker.stop().unwrap();
        // Without a notification: the device may have been told of this one already.
        driver.request(&[(DATA, 8, true)]);
        assert!(driver.used().is_empty(), "a paused device does nothing");
        assert!(worker.start(activated));
        assert_eq!(used(&mut driver), 1);
        activated = worker.stop().unwrap();
    }
}

#[test]
fn a_device_that_failed_stays_so_over_a_pause() {
    let ram = ram();
    let mut driver = Driver::new(&ram);
    let bell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
    let queues = queues(&ram, 2);
    let interrupt = Arc::clone(&queues.interrupt);
    interrupt.needs_reset.store(true, Ordering::SeqCst);
    let doorbells = vec![bell.try_clone().ok(), None];
    let mut worker = started(Activated::new(Box::<Sink>::default(), queues, doorbells));
    driver.request(&[(DATA, 8, true)]);
    bell.write(1).unwrap();
    // A call is answered, and comes after the events that were there before it.
    assert_eq!(worker.call(|_, _| Ok(7)), Some(7));
    let stopped = worker.stop().unwrap();
    assert!(worker.start(stopped));
    assert_eq!(worker.call(|_, _| Ok(8)), Some(8));
    assert!(driver.used().is_empty());
    assert!(worker.stop().is_some());
}
