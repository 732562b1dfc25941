//! The thread that an activated device runs on, with its own event loop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{QueueError, Ring, VirtioDevice};
use crate::Rare;

/// Interrupt reasons (4.2.2): a used buffer, a change of the configuration.
pub(crate) const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

/// What device and transport share while the device runs.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The reasons of interrupts that the driver has not acknowledged.
    pub(crate) reasons: AtomicU32,
    /// The driver broke a rule: the device waits for a reset.
    pub(crate) needs_reset: AtomicBool,
    /// Raises the interrupt.
    pub(crate) line: EventFd,
    pub(crate) failures: Rare,
}

impl Shared {
    /// The device cannot go on: the driver has to reset it.
    pub(crate) fn fail(&self, cause: &str) {
        if let Some(times) = self.failures.again() {
            log::warn!("a virtio device needs a reset, {times} times so far: {cause}");
        }
        self.needs_reset.store(true, Ordering::SeqCst);
        self.interrupt(CONFIG_CHANGE);
    }

    pub(crate) fn interrupt(&self, reason: u32) {
        self.reasons.fetch_or(reason, Ordering::SeqCst);
        // A full counter means that the interrupt is on its way.
        let _ = self.line.write(1);
    }
}

/// A queue and what the driver rings when it has filled it.
#[derive(Debug)]
pub(crate) struct ActiveQueue {
    pub(crate) ring: Ring,
    pub(crate) doorbell: EventFd,
}

/// A device on its thread.
#[derive(Debug)]
pub(crate) struct Worker {
    stop: EventFd,
    thread: JoinHandle<Option<Box<dyn VirtioDevice>>>,
}

impl Worker {
    /// Moves a device and its queues to a thread of their own. Gives the device back when there can
    /// be none.
    pub(crate) fn start(
        device: Box<dyn VirtioDevice>,
        queues: Vec<Option<ActiveQueue>>,
        features: u64,
        shared: Arc<Shared>,
    ) -> Result<Self, (Box<dyn VirtioDevice>, io::Error)> {
        // The device goes to the thread when all that can fail is done.
        let (sender, receiver) = mpsc::channel();
        let prepared = EventFd::new(EFD_NONBLOCK).and_then(|stop| {
            let events =
                EventManager::new().map_err(|error| io::Error::other(error.to_string()))?;
            let for_thread = stop.try_clone()?;
            let thread = thread::Builder::new()
                .name("virtio".to_owned())
                .spawn(move || run(events, receiver.recv().ok()?))?;
            Ok((stop, for_thread, thread))
        });
        match prepared {
            Ok((stop, for_thread, thread)) => {
                // It waits for nothing else.
                let _ = sender.send(Service {
                    device,
                    queues,
                    features,
                    shared,
                    stop: for_thread,
                    stopped: false,
                });
                Ok(Self { stop, thread })
            }
            Err(error) => Err((device, error)),
        }
    }

    /// Stops the thread and gives the device back; `None` when the thread panicked.
    pub(crate) fn stop(self) -> Option<Box<dyn VirtioDevice>> {
        // The counter cannot overflow: this is its only write.
        let _ = self.stop.write(1);
        self.thread.join().ok().flatten()
    }
}

fn run(mut events: EventManager<Service>, service: Service) -> Option<Box<dyn VirtioDevice>> {
    let id = events.add_subscriber(service);
    loop {
        match events.run() {
            Ok(_) => {}
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EINTR => {}
            // It cannot fail otherwise; a device that cannot listen is as good as stopped.
            Err(_) => break,
        }
        if events.subscriber_mut(id).ok()?.stopped {
            break;
        }
    }
    events
        .remove_subscriber(id)
        .ok()
        .map(|service| service.device)
}

/// What an event is about: a queue's number, or this.
const STOP: u32 = u32::MAX;

/// The device in its event loop.
struct Service {
    device: Box<dyn VirtioDevice>,
    queues: Vec<Option<ActiveQueue>>,
    features: u64,
    shared: Arc<Shared>,
    stop: EventFd,
    stopped: bool,
}

impl Service {
    /// Serves a queue once. What is left over rings again, so that neither another queue nor the
    /// end of the device waits for a driver that never stops.
    fn serve(&mut self, number: usize) -> Result<(), QueueError> {
        let Some(ActiveQueue { ring, doorbell }) =
            self.queues.get_mut(number).and_then(Option::as_mut)
        else {
            return Ok(());
        };
        ring.disable_notifications()?;
        if self.device.serve(number, ring, self.features)? {
            self.shared.interrupt(USED_BUFFER);
        }
        if ring.enable_notifications()? {
            // A full counter means that it rings anyway.
            let _ = doorbell.write(1);
        }
        Ok(())
    }
}

impl MutEventSubscriber for Service {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let number = events.data() as usize;
        if events.data() == STOP {
            self.stopped = true;
            return;
        }
        if let Some(Some(queue)) = self.queues.get(number) {
            // Reading only resets the counter.
            let _ = queue.doorbell.read();
        }
        if let Err(error) = self.serve(number) {
            for queue in self.queues.iter().flatten() {
                let _ = ops.remove(Events::empty(&queue.doorbell));
            }
            self.shared.fail(&error.to_string());
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let doorbells = self
            .queues
            .iter()
            .enumerate()
            .filter_map(|(number, queue)| {
                Some((&queue.as_ref()?.doorbell, u32::try_from(number).ok()?))
            });
        for (event, data) in doorbells.chain([(&self.stop, STOP)]) {
            // An eventfd can be added once, short of memory for the kernel's bookkeeping.
            if let Err(error) = ops.add(Events::with_data(event, data, EventSet::IN)) {
                log::error!("a virtio device cannot watch an event: {error}");
            }
        }
    }
}
