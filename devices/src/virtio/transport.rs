//! What the transports have in common: the state of a device as its driver sees it (VIRTIO 1.3, 2.1
//! to 2.5, 3.1), and the way of the device to its worker and back.
//!
//! A transport decodes registers and says where notifications come from; which changes are allowed
//! when is decided here, once for all.

use std::io;
use std::os::fd::OwnedFd;
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

use vm_memory::GuestAddress;

use super::queues::MOST_EVENTS;
use super::worker::{Activated, Worker};
use super::{ConfigSpace, DeviceState, GuestRam, Interrupt, Monitor, Queues, Ring, VirtioDevice};
use crate::{Change, ChangeError, Query, Rare, Report};

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

/// Types of devices that there may be: a number below.
const TYPES: usize = 64;
/// So many drivers of a type are worth a line each: more devices of it a machine does not have.
const FEW: u64 = 32;

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
            worker: Worker::new(device.name())?,
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

    /// The driver is ready: the device and the queues that are set up go to a worker.
    fn activate(&mut self) {
        let event_idx = self.accepted & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let (mut rings, mut doorbells) = (Vec::new(), Vec::new());
        for (queue, doorbell) in self.queues.iter_mut().zip(&self.doorbells) {
            queue.set_event_idx(event_idx);
            let captured = if queue.ready() {
                Ring::new(queue, self.ram.clone())
                    .map_err(|error| error.to_string())
                    .and_then(|ring| {
                        let doorbell = doorbell.try_clone().map_err(|error| error.to_string())?;
                        Ok((Some(ring), Some(doorbell)))
                    })
            } else {
                Ok((None, None))
            };
            match captured {
                Ok((ring, doorbell)) => {
                    rings.push(ring);
                    doorbells.push(doorbell);
                }
                Err(error) => return self.fail(&error),
            }
        }
        let Stage::Idle(device) = std::mem::replace(&mut self.stage, Stage::Lost) else {
            return self.fail("its thread is gone");
        };
        let queues = Queues::new(rings, Arc::clone(&self.interrupt));
        let mut activated = Activated::new(device, queues, doorbells);
        activated.device.start(self.accepted);
        if self.run(activated) {
            self.connect_doorbells(true);
            self.interrupt.monitor.notices.driver_ready();
            self.tell_of_driver();
        }
    }

    /// Has the worker serve the device; says whether there still is one.
    fn run(&mut self, activated: Activated) -> bool {
        let is_there = self.worker.start(activated);
        if is_there {
            self.stage = Stage::Running;
        } else {
            self.fail("its thread is gone");
        }
        is_there
    }

    /// Stops the worker, and ends and answers what is in flight. No vCPU runs meanwhile, and until
    /// [`Self::resume`].
    pub(crate) fn pause(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::Running => {
                if let Some(mut activated) = self.worker.stop() {
                    let Activated { device, queues, .. } = &mut activated;
                    if let Err(error) = device.quiesce(queues) {
                        self.fail(&error.to_string());
                    }
                    self.stage = Stage::Paused(activated);
                }
            }
            stage => self.stage = stage,
        }
    }

    /// Changes a part of the device, on its thread if it has one.
    pub(crate) fn change(&mut self, change: &Change) -> Result<(), ChangeError> {
        change.check()?;
        match &mut self.stage {
            Stage::Idle(device) => device.change(change, None),
            Stage::Paused(Activated { device, queues, .. }) => device.change(change, Some(queues)),
            Stage::Running => {
                let change = change.clone();
                let changed = self
                    .worker
                    .call(move |device, queues| Ok(device.change(&change, Some(queues))));
                changed.unwrap_or(Err(ChangeError::Lost))
            }
            Stage::Lost => Err(ChangeError::Lost),
        }
    }

    /// Puts another file behind the device, on its thread if it has one.
    pub(crate) fn replace_file(&mut self, file: OwnedFd, name: &str) -> Result<(), ChangeError> {
        match &mut self.stage {
            Stage::Idle(device) => device.replace_file(file, name, None),
            Stage::Paused(Activated { device, queues, .. }) => {
                device.replace_file(file, name, Some(queues))
            }
            Stage::Running => {
                let name = name.to_owned();
                let replaced = self
                    .worker
                    .call(move |device, queues| Ok(device.replace_file(file, &name, Some(queues))));
                replaced.unwrap_or(Err(ChangeError::Lost))
            }
            Stage::Lost => Err(ChangeError::Lost),
        }
    }

    /// Has the device tell something, on its thread if it has one.
    pub(crate) fn query(&mut self, query: Query) -> Result<Report, ChangeError> {
        match &mut self.stage {
            Stage::Idle(device) => device.query(query, None),
            // Nothing changes the memory of a guest that stands still.
            Stage::Paused(Activated { device, .. }) => device.query(query, None),
            Stage::Running => {
                let told = self
                    .worker
                    .call(move |device, queues| Ok(device.query(query, Some(queues))));
                told.unwrap_or(Err(ChangeError::Lost))
            }
            Stage::Lost => Err(ChangeError::Lost),
        }
    }

    /// The machine goes on.
    pub(crate) fn resume(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::Paused(activated) => drop(self.run(activated)),
            stage => self.stage = stage,
        }
    }

    /// Drivers may come again and again, also with a guest that starts again, which makes all anew but this
    /// count.
    fn tell_of_driver(&self) {
        static DRIVERS: [Rare; TYPES] = [const { Rare::new() }; TYPES];
        if !log::log_enabled!(log::Level::Debug) {
            return;
        }
        let drivers = DRIVERS.get(self.id as usize);
        if let Some(times) = drivers.and_then(|drivers| drivers.again_after(FEW)) {
            let ready = self
                .queues
                .iter()
                .enumerate()
                .filter(|(_, queue)| queue.ready());
            let queues: Vec<_> = ready
                .map(|(number, queue)| format!("{number} of {}", queue.size()))
                .collect();
            log::debug!(
                "virtio {}: DRIVER_OK, {times} of this kind so far; features {:#x}, queues {}",
                self.name,
                self.accepted,
                queues.join(", ")
            );
        }
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

    /// Stops the worker, if there is one; returns when the device is back.
    fn stop(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::Running => {
                self.connect_doorbells(false);
                if let Some(activated) = self.worker.stop() {
                    self.stage = Stage::Idle(activated.stop());
                }
            }
            Stage::Paused(activated) => {
                self.connect_doorbells(false);
                self.stage = Stage::Idle(activated.stop());
            }
            stage => self.stage = stage,
        }
    }

    /// The device may not access the guest's memory from now on: it ends what it has begun, and goes
    /// on after a reset only. (A driver that never said it may is let do without.)
    #[cfg(feature = "pci")]
    pub(crate) fn cut_off(&mut self) {
        if self.is_running() {
            self.stop();
            // Without an interrupt: a message would be an access, too.
            self.interrupt.needs_reset.store(true, Ordering::SeqCst);
            let cause = "the driver has taken bus mastering away";
            self.interrupt.monitor.notices.needs_reset(cause);
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

    /// Where the device is in its life.
    pub(crate) fn state(&self) -> DeviceState {
        match self.stage {
            Stage::Lost => DeviceState::Lost,
            _ if self.interrupt.lost.load(Ordering::SeqCst) => DeviceState::Lost,
            _ if self.interrupt.needs_reset.load(Ordering::SeqCst) => DeviceState::NeedsReset,
            Stage::Idle(_) => DeviceState::Idle,
            Stage::Running | Stage::Paused(_) => DeviceState::Running,
        }
    }

    /// Resets the device and gives it back; `None` when it is lost.
    pub(crate) fn take_device(&mut self) -> Option<Box<dyn VirtioDevice>> {
        self.reset();
        match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::Idle(device) => Some(device),
            Stage::Running | Stage::Paused(_) | Stage::Lost => None,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running)
    }
}

/// A part of a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    Descriptors,
    /// The available ring.
    Driver,
    /// The used ring.
    Device,
}

/// Changes halves of a part's address. What is not aligned as it has to be stays as it was: that is between
/// the driver and its queue, and not worth the line in the log that virtio-queue's own setters write.
pub(crate) fn set_address(queue: &mut Queue, part: Part, low: Option<u32>, high: Option<u32>) {
    let old = match part {
        Part::Descriptors => queue.desc_table(),
        Part::Driver => queue.avail_ring(),
        Part::Device => queue.used_ring(),
    };
    let low = low.map_or(old & u64::from(u32::MAX), u64::from);
    let high = high.map_or(old >> 32, u64::from);
    let address = GuestAddress(high << 32 | low);
    let _ = match part {
        Part::Descriptors => queue.try_set_desc_table_address(address),
        Part::Driver => queue.try_set_avail_ring_address(address),
        Part::Device => queue.try_set_used_ring_address(address),
    };
}

/// Changes a queue's size, likewise.
pub(crate) fn set_size(queue: &mut Queue, size: u16) {
    let _ = queue.try_set_size(size);
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.stop();
    }
}
