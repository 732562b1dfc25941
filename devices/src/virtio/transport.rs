//! What the transports have in common: the state of a device as its driver sees it (VIRTIO 1.3, 2.1
//! to 2.5, 3.1), and the way of the device to its worker and back.
//!
//! A transport decodes registers and says where notifications come from; which changes are allowed
//! when is decided here, once for all.

mod life;
mod saved;
pub(crate) mod set_up;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::event::MOST_EVENTS;
use super::worker::{Activated, Worker};
use super::{ConfigSpace, GuestRam, Interrupt, Monitor, VirtioDevice};
use crate::{Rare, Threads};

/// Features of queues and transport.
const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Connects a queue's notifications to an event, or disconnects them: the number of the queue, the
/// event, whether to connect.
pub type Connect = Box<dyn Fn(u16, &EventFd, bool) -> io::Result<()> + Send>;

/// Where the device is.
enum Stage {
    /// Not running; the driver may set queues up.
    Idle(Box<dyn VirtioDevice>),
    /// On the worker.
    Running,
    /// The machine is paused: what ran is kept as it is.
    Paused(Activated),
    /// Its worker panicked, or it was taken away: nothing is left to run.
    Lost,
}

pub(crate) struct Transport {
    ram: GuestRam,
    connect: Connect,
    interrupt: Arc<Interrupt>,
    stage: Stage,
    worker: Worker,
    status: u32,
    /// What the device and its queues offer, and what the driver took.
    offered: u64,
    accepted: u64,
    queues: Vec<Queue>,
    doorbells: Vec<EventFd>,
    id: u32,
    /// The device's, for messages.
    name: &'static str,
    config: Arc<ConfigSpace>,
    /// See [`VirtioDevice::dependencies`].
    dependencies: &'static [(u32, &'static [u32])],
    failures: Rare,
    /// It goes on where a saved one was: its driver has to be told of everything once more.
    restored: bool,
}

/// The half of a 64-bit field that a selector chooses; there is nothing beyond the second.
fn half(value: u64, selector: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    match selector {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

impl Transport {
    /// # Errors
    /// When the host refuses events or a thread, a queue's size is none, or there are more queues or sources
    /// than events have names for.
    pub(crate) fn new(
        device: Box<dyn VirtioDevice>,
        ram: GuestRam,
        mut interrupt: Interrupt,
        connect: Connect,
        threads: &Threads,
    ) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        for (count, what) in [(sizes.len(), "queues"), (device.sources().len(), "sources")] {
            if count > MOST_EVENTS {
                let name = device.name();
                return Err(io::Error::other(format!(
                    "{name} has {count} {what}, a device has {MOST_EVENTS} at most"
                )));
            }
        }
        let queues = sizes
            .iter()
            .map(|size| Queue::new(*size).map_err(|error| io::Error::other(error.to_string())))
            .collect::<io::Result<_>>()?;
        let doorbells = sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC))
            .collect::<io::Result<_>>()?;
        interrupt.monitor = device.monitor();
        Ok(Self {
            ram,
            connect,
            interrupt: Arc::new(interrupt),
            status: 0,
            offered: device.features() | COMMON_FEATURES,
            accepted: 0,
            queues,
            doorbells,
            id: device.id(),
            name: device.name(),
            config: device.config(),
            dependencies: device.dependencies(),
            failures: Rare::default(),
            restored: false,
            worker: Worker::new(device.name(), threads)?,
            stage: Stage::Idle(device),
        })
    }

    /// The device's type.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn config(&self) -> &ConfigSpace {
        &self.config
    }

    pub(crate) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    pub(crate) fn monitor(&self) -> Arc<Monitor> {
        Arc::clone(&self.interrupt.monitor)
    }

    /// A half of the features that are offered.
    pub(crate) fn offered(&self, selector: u32) -> u32 {
        half(self.offered, selector)
    }

    /// A half of the features that the driver took.
    #[cfg(feature = "pci")]
    pub(crate) fn accepted(&self, selector: u32) -> u32 {
        half(self.accepted, selector)
    }

    pub(crate) fn queue(&self, number: u32) -> Option<&Queue> {
        self.queues.get(number as usize)
    }

    /// A queue, while the driver may change it: before DRIVER_OK, and not once it is ready.
    pub(crate) fn queue_to_set_up(&mut self, number: u32) -> Option<&mut Queue> {
        let set_up = VIRTIO_CONFIG_S_FEATURES_OK;
        if self.status & (set_up | VIRTIO_CONFIG_S_DRIVER_OK) != set_up {
            return None;
        }
        let queue = self.queues.get_mut(number as usize);
        queue.filter(|queue| !queue.ready())
    }

    pub(crate) fn status(&self) -> u32 {
        if self.interrupt.needs_reset.load(Ordering::SeqCst) {
            self.status | VIRTIO_CONFIG_S_NEEDS_RESET
        } else {
            self.status
        }
    }

    /// Rings a queue's doorbell, where no ioeventfd does.
    pub(crate) fn notify(&self, queue: u32) {
        if let Some(doorbell) = self.doorbells.get(queue as usize) {
            // A full counter means that it rings anyway.
            let _ = doorbell.write(1);
        }
    }

    /// The driver takes a half of the features, until it says that it has all.
    pub(crate) fn accept(&mut self, selector: u32, value: u32) {
        let negotiating = VIRTIO_CONFIG_S_DRIVER;
        if self.status & (negotiating | VIRTIO_CONFIG_S_FEATURES_OK) != negotiating || selector > 1
        {
            return;
        }
        let shift = selector * 32;
        let kept = self.accepted & !(u64::from(u32::MAX) << shift);
        self.accepted = kept | u64::from(value) << shift;
    }

    /// The driver sets bits one after the other and never clears one, except all by a reset.
    pub(crate) fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let new = value & !self.status;
        if self.status & !value & !VIRTIO_CONFIG_S_NEEDS_RESET != 0 {
            return;
        }
        if new & VIRTIO_CONFIG_S_FAILED != 0 {
            self.status |= VIRTIO_CONFIG_S_FAILED;
        }
        let steps = [
            VIRTIO_CONFIG_S_ACKNOWLEDGE,
            VIRTIO_CONFIG_S_DRIVER,
            VIRTIO_CONFIG_S_FEATURES_OK,
            VIRTIO_CONFIG_S_DRIVER_OK,
        ];
        let mut before = true;
        for step in steps {
            let wanted = new & step != 0;
            if wanted && before {
                match step {
                    // What was not offered is not accepted, and then this bit does not stick.
                    VIRTIO_CONFIG_S_FEATURES_OK if !self.features_are_fine() => return,
                    VIRTIO_CONFIG_S_DRIVER_OK => self.activate(),
                    _ => {}
                }
                self.status |= step;
            }
            before = self.status & step != 0;
        }
    }

    /// Whether the driver may take these features: all were offered, the version is among them, and none
    /// lacks another one that it needs.
    fn features_are_fine(&self) -> bool {
        let has = |bit: u32| self.accepted & 1 << bit != 0;
        let complete = |(feature, needs): &(u32, &[u32])| {
            !has(*feature) || needs.iter().any(|need| has(*need))
        };
        self.accepted & !self.offered == 0
            && has(VIRTIO_F_VERSION_1)
            && self.dependencies.iter().all(complete)
    }

    /// The device cannot start: its driver has to reset it, and may try again.
    fn fail(&self, cause: &str) {
        self.interrupt.fail(&format!("{}: {cause}", self.name));
    }

    pub(crate) fn connect_doorbells(&self, on: bool) {
        for (number, queue) in (0u16..).zip(&self.queues) {
            if queue.ready() {
                self.connect_doorbell(number, on);
            }
        }
    }

    /// A doorbell that cannot be connected still rings: its writes then come as exits.
    fn connect_doorbell(&self, number: u16, on: bool) {
        if let Some(doorbell) = self.doorbells.get(usize::from(number))
            && let Err(error) = (self.connect)(number, doorbell, on)
            && let Some(times) = self.failures.again()
        {
            log::debug!("virtio queue {number}: no ioeventfd, {times} times so far: {error}");
        }
    }

    /// The driver takes a queue back. It cannot set it up again before a reset, once the device runs.
    pub(crate) fn close_queue(&mut self, number: u32) {
        let ready = self.queue(number).is_some_and(QueueT::ready);
        let Some(number) = u16::try_from(number).ok().filter(|_| ready) else {
            return;
        };
        if self.is_running() {
            self.connect_doorbell(number, false);
            self.worker.close(number.into());
        }
        if let Some(queue) = self.queues.get_mut(usize::from(number)) {
            queue.set_ready(false);
        }
    }

    fn reset(&mut self) {
        self.stop();
        (self.status, self.accepted) = (0, 0);
        self.queues.iter_mut().for_each(QueueT::reset);
        for doorbell in &self.doorbells {
            // Reading only resets the counter.
            let _ = doorbell.read();
        }
        self.interrupt.reasons.store(0, Ordering::SeqCst);
        // Also of a device whose worker is gone, since drivers wait for a status of 0; it does not
        // become ready again.
        self.interrupt.needs_reset.store(false, Ordering::SeqCst);
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running)
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.stop();
    }
}
