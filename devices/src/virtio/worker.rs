//! The thread that an activated device runs on, with its own event loop.
//!
//! Everything is watched edge-triggered, so that nothing has to be read to be quiet again. What an
//! event leaves over is served again after the other events had their turn: no driver keeps the
//! device from its other queues, or from its end.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::queues::Wanted;
use super::{Event, Interrupt, QueueError, Queues, VirtioDevice};
use crate::{Rare, Threads, lock};

/// What is done to a running device between two events.
type Call = Box<dyn FnOnce(&mut dyn VirtioDevice, &mut Queues) -> Result<(), QueueError> + Send>;

/// A device with all that its thread serves.
#[derive(Debug)]
pub(crate) struct Activated {
    pub(crate) device: Box<dyn VirtioDevice>,
    pub(crate) queues: Queues,
    /// Each belongs to the queue of the same number.
    pub(crate) doorbells: Vec<Option<EventFd>>,
    /// It ran before: what it was about to serve then has no event of its own any more.
    resumed: bool,
}

impl Activated {
    pub(crate) fn new(
        device: Box<dyn VirtioDevice>,
        queues: Queues,
        doorbells: Vec<Option<EventFd>>,
    ) -> Self {
        Self {
            device,
            queues,
            doorbells,
            resumed: false,
        }
    }

    /// It ran in another machine.
    pub(crate) fn restored(mut self) -> Self {
        self.resumed = true;
        self
    }

    fn serve(&mut self, event: Event) -> Result<bool, QueueError> {
        self.device.serve(event, &mut self.queues)
    }

    /// Ends whatever is in flight; gives the device back.
    pub(crate) fn stop(mut self) -> Box<dyn VirtioDevice> {
        self.device.stop();
        self.device
    }
}

/// The thread of a device. It is made before the guest runs and waits for the driver, so that a vCPU that starts a
/// device starts no thread.
#[derive(Debug)]
pub(crate) struct Worker {
    name: &'static str,
    threads: Threads,
    /// Devices for the thread; it ends when there can be no more.
    orders: Option<mpsc::Sender<Service>>,
    /// Devices that were stopped.
    stopped: mpsc::Receiver<Activated>,
    wakes: Arc<Wakes>,
    /// While a device runs: what tells it to stop, seen between one event and the next, whatever else is ready;
    /// and what it is to do.
    running: Option<(Arc<AtomicBool>, mpsc::Sender<Call>)>,
    thread: Option<JoinHandle<()>>,
}

/// What wakes a device's thread besides doorbells and sources.
#[derive(Debug)]
struct Wakes {
    /// It shall stop.
    stop: EventFd,
    /// There are calls.
    called: EventFd,
    /// Something is left over.
    again: EventFd,
}

impl Worker {
    /// # Errors
    /// When the host refuses a thread or its events.
    pub(crate) fn new(name: &'static str, threads: &Threads) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let wakes = Arc::new(Wakes {
            stop: event()?,
            called: event()?,
            again: event()?,
        });
        let (orders, stopped, thread) = spawn(name, threads)?;
        Ok(Self {
            name,
            threads: threads.clone(),
            orders: Some(orders),
            stopped,
            wakes,
            running: None,
            thread: Some(thread),
        })
    }

    /// Ends the thread of a device that was stopped, until [`Self::unpark`].
    pub(crate) fn park(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported by `Panic`.
            let _ = thread.join();
        }
    }

    /// There is a thread again.
    ///
    /// # Errors
    /// When the host refuses one.
    pub(crate) fn unpark(&mut self) -> io::Result<()> {
        if self.thread.is_none() {
            let (orders, stopped, thread) = spawn(self.name, &self.threads)?;
            (self.orders, self.stopped, self.thread) = (Some(orders), stopped, Some(thread));
        }
        Ok(())
    }

    /// Moves a device and its queues to the thread; says whether there still is one.
    pub(crate) fn start(&mut self, activated: Activated) -> bool {
        let stopping = Arc::clone(&activated.queues.stopping);
        stopping.store(false, Ordering::SeqCst);
        let (calls, to_do) = mpsc::channel();
        let service = Service {
            activated,
            left_over: Wanted::default(),
            wakes: Arc::clone(&self.wakes),
            calls: to_do,
        };
        let orders = self.orders.as_ref();
        let is_there = orders.is_some_and(|orders| orders.send(service).is_ok());
        self.running = is_there.then_some((stopping, calls));
        is_there
    }

    /// Has the device's thread do something between two events; gives what came of it, or `None` when the
    /// thread is gone. A rule of a queue that was broken ends the device as in its own events.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut dyn VirtioDevice, &mut Queues) -> Result<T, QueueError> + Send + 'static,
    ) -> Option<T> {
        // One kind of channel for all kinds of values: each would be code of its own.
        let (done, ended) = mpsc::channel::<()>();
        let value = Arc::new(Mutex::new(None));
        let place = Arc::clone(&value);
        let call: Call = Box::new(move |device, queues| {
            let result = call(device, queues).map(|value| *lock(&place) = Some(value));
            drop(done);
            result
        });
        self.running.as_ref()?.1.send(call).ok()?;
        // A full counter means that it wakes anyway.
        let _ = self.wakes.called.write(1);
        // Nothing is sent: it is done, or will never be.
        let _ = ended.recv();
        lock(&value).take()
    }

    /// Takes a queue from the device; returns when nothing uses it any more.
    pub(crate) fn close(&self, queue: usize) {
        // A thread that is gone uses no queue either, and one that fails has closed it.
        let _ = self.call(move |device, queues| {
            let result = device.close(queue, queues);
            queues.close(queue);
            result
        });
    }

    /// Stops the device after the request that it is at; gives back what the thread served, with what is in flight
    /// still in flight, or `None` when the thread panicked.
    pub(crate) fn stop(&mut self) -> Option<Activated> {
        let (stopping, _) = self.running.take()?;
        stopping.store(true, Ordering::SeqCst);
        // The counter cannot overflow: the thread resets it.
        let _ = self.wakes.stop.write(1);
        self.stopped.recv().ok()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stop());
        self.park();
    }
}

/// A thread, what gives it devices, and where those come back.
type Spawned = (
    mpsc::Sender<Service>,
    mpsc::Receiver<Activated>,
    JoinHandle<()>,
);

fn spawn(name: &'static str, threads: &Threads) -> io::Result<Spawned> {
    let mut events = EventManager::new().map_err(|error| match error {
        event_manager::Error::Epoll(errno) => errno.into(),
        other => io::Error::other(other.to_string()),
    })?;
    let (orders, for_thread) = mpsc::channel::<Service>();
    let (sender, stopped) = mpsc::channel();
    let thread = threads.spawn(name, name, move || {
        for service in for_thread {
            let _guard = Panic(Arc::clone(&service.activated.queues.interrupt), name);
            let Some(activated) = run(&mut events, service) else {
                return;
            };
            if sender.send(activated).is_err() {
                return;
            }
        }
    })?;
    Ok((orders, stopped, thread))
}

/// A device whose thread panics needs a reset, and says so.
struct Panic(Arc<Interrupt>, &'static str);

impl Drop for Panic {
    fn drop(&mut self) {
        if thread::panicking() {
            let Self(interrupt, name) = self;
            interrupt.lose(&format!(
                "{name}: its thread panicked, which is a fault of the VMM"
            ));
        }
    }
}

fn run(events: &mut EventManager<Service>, service: Service) -> Option<Activated> {
    let id = events.add_subscriber(service);
    loop {
        match events.run() {
            Ok(_) => {}
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EINTR => {}
            // It cannot fail otherwise; a device that cannot listen is as good as stopped.
            Err(_) => break,
        }
        if events.subscriber_mut(id).ok()?.is_stopping() {
            break;
        }
    }
    let Service {
        mut activated,
        wakes,
        ..
    } = events.remove_subscriber(id).ok()?;
    for event in [&wakes.stop, &wakes.called, &wakes.again] {
        // Reading only resets the counter, for the next driver.
        let _ = event.read();
    }
    activated.resumed = true;
    Some(activated)
}

/// What an event is about: the bit of an [`Event`], or one of these.
const STOP: u32 = 64;
const AGAIN: u32 = 65;
const CALLED: u32 = 66;
/// How often what an event leaves over is served before other events are looked at.
const ROUNDS: usize = 8;

/// A driver can start its device as often as it likes.
static UNWATCHED: Rare = Rare::new();

/// The device in its event loop.
struct Service {
    activated: Activated,
    left_over: Wanted,
    wakes: Arc<Wakes>,
    calls: mpsc::Receiver<Call>,
}

impl Service {
    fn is_stopping(&self) -> bool {
        self.activated.queues.is_stopping()
    }

    fn answer_calls(&mut self) -> Result<(), QueueError> {
        let Activated { device, queues, .. } = &mut self.activated;
        let mut result = Ok(());
        while let Ok(call) = self.calls.try_recv() {
            result = result.and(call(device.as_mut(), queues));
        }
        result
    }

    fn serve(&mut self, mut wanted: Wanted) -> Result<(), QueueError> {
        for _ in 0..ROUNDS {
            let mut more = Wanted::default();
            while let Some(event) = wanted.take() {
                if self.is_stopping() {
                    return Ok(());
                }
                if self.activated.serve(event)? {
                    more.add(event);
                }
            }
            more.0 |= self.activated.queues.rearm()?.0;
            if more == Wanted::default() {
                return Ok(());
            }
            wanted = more;
        }
        self.left_over.0 |= wanted.0;
        // A full counter means that it wakes anyway.
        let _ = self.wakes.again.write(1);
        Ok(())
    }

    /// Each event that is watched, with what it is about.
    fn watched(&self) -> Vec<(i32, u32)> {
        use std::os::fd::AsRawFd;
        let doorbells =
            self.activated
                .doorbells
                .iter()
                .enumerate()
                .filter_map(|(number, event)| {
                    Some((
                        event.as_ref()?.as_raw_fd(),
                        Wanted::bit(Event::Queue(number)),
                    ))
                });
        let sources = self.activated.device.sources();
        let sources = sources
            .iter()
            .enumerate()
            .map(|(number, fd)| (*fd, Wanted::bit(Event::Source(number))));
        let own = [
            (self.wakes.stop.as_raw_fd(), STOP),
            (self.wakes.again.as_raw_fd(), AGAIN),
            (self.wakes.called.as_raw_fd(), CALLED),
        ];
        doorbells.chain(sources).chain(own).collect()
    }
}

impl MutEventSubscriber for Service {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let result = match events.data() {
            // The loop itself looks.
            STOP => return,
            CALLED => self.answer_calls(),
            AGAIN => {
                let wanted = std::mem::take(&mut self.left_over);
                self.serve(wanted)
            }
            bit => {
                let event = Wanted::event(bit);
                if let Event::Queue(queue) = event {
                    let monitor = &self.activated.queues.interrupt.monitor;
                    monitor.notified(queue);
                }
                let mut wanted = Wanted::default();
                wanted.add(event);
                self.serve(wanted)
            }
        };
        if let Err(error) = result {
            self.left_over = Wanted::default();
            for (fd, data) in self.watched() {
                if !matches!(data, STOP | CALLED) {
                    let _ = ops.remove(Events::empty_raw(fd));
                }
            }
            let name = self.activated.device.name();
            self.activated
                .queues
                .interrupt
                .fail(&format!("{name}: {error}"));
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let failed = self
            .activated
            .queues
            .interrupt
            .needs_reset
            .load(Ordering::SeqCst);
        for (fd, data) in self.watched() {
            if failed && !matches!(data, STOP | CALLED) {
                continue;
            }
            if self.activated.resumed && data < STOP {
                self.left_over.0 |= 1 << data;
            }
            let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
            // A descriptor can be added once, short of memory for the kernel's bookkeeping.
            if let Err(error) = ops.add(Events::with_data_raw(fd, data, set))
                && let Some(times) = UNWATCHED.again()
            {
                log::error!("a virtio device cannot watch an event, {times} times so far: {error}");
            }
        }
        if self.left_over != Wanted::default() {
            let _ = self.wakes.again.write(1);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
