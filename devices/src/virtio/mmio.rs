//! The MMIO transport, version 2 (VIRTIO 1.3, 4.2).
//!
//! A device's registers are served under one lock; the hot path is not here: once the driver is
//! ready, its notifications go to the worker through an ioeventfd.

use std::fmt;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::worker::Worker;
use super::{ConfigSpace, GuestRam, Interrupt, Queues, Ring, VirtioDevice};
use crate::bus::{BusDevice, Outcome};
use crate::lock;

/// Register offsets (4.2.2).
const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_SIZE_MAX: u64 = 0x034;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
/// Where the driver writes a queue's number to notify the device.
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC_LOW: u64 = 0x080;
const QUEUE_DESC_HIGH: u64 = 0x084;
const QUEUE_DRIVER_LOW: u64 = 0x090;
const QUEUE_DRIVER_HIGH: u64 = 0x094;
const QUEUE_DEVICE_LOW: u64 = 0x0a0;
const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
const SHM_LEN_LOW: u64 = 0x0b0;
const SHM_BASE_HIGH: u64 = 0x0bc;
const CONFIG_GENERATION: u64 = 0x0fc;
const CONFIG: u64 = 0x100;

/// "virt", little endian.
const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");
const VERSION_VALUE: u32 = 2;
/// "RVMM": whoever made the device; drivers only show it.
const VENDOR: u32 = u32::from_le_bytes(*b"RVMM");

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
    Running(Worker),
    /// Its worker panicked: nothing is left to run.
    Lost,
}

struct State {
    ram: GuestRam,
    connect: Connect,
    interrupt: Arc<Interrupt>,
    stage: Stage,
    status: u32,
    /// What the device and its queues offer, and what the driver took.
    offered: u64,
    accepted: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    queues: Vec<Queue>,
    doorbells: Vec<EventFd>,
    id: u32,
    config: Arc<ConfigSpace>,
}

/// A virtio device behind the MMIO transport.
pub struct VirtioMmio(Mutex<State>);

impl fmt::Debug for VirtioMmio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioMmio").finish_non_exhaustive()
    }
}

impl VirtioMmio {
    /// The offset of the register that the driver writes a queue's number to.
    pub const NOTIFY: u64 = QUEUE_NOTIFY;

    /// `line` is the interrupt, pulsed.
    ///
    /// # Errors
    /// When no events can be made, or a queue's size is none.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: GuestRam,
        line: EventFd,
        connect: Connect,
    ) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let queues = sizes
            .iter()
            .map(|size| Queue::new(*size).map_err(|error| io::Error::other(error.to_string())))
            .collect::<io::Result<_>>()?;
        let doorbells = sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<io::Result<_>>()?;
        Ok(Self(Mutex::new(State {
            ram,
            connect,
            interrupt: Arc::new(Interrupt::new(line)),
            status: 0,
            offered: device.features() | COMMON_FEATURES,
            accepted: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            queues,
            doorbells,
            id: device.id(),
            config: device.config(),
            stage: Stage::Idle(device),
        })))
    }
}

impl VirtioMmio {
    /// Resets the device and gives it back, for another transport: nothing is behind this one any
    /// more. `None` when the device is lost.
    pub fn take_device(&self) -> Option<Box<dyn VirtioDevice>> {
        let mut state = lock(&self.0);
        state.reset();
        match std::mem::replace(&mut state.stage, Stage::Lost) {
            Stage::Idle(device) => Some(device),
            Stage::Running(_) | Stage::Lost => None,
        }
    }
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

impl State {
    fn queue(&self) -> Option<&Queue> {
        self.queues.get(self.queue_sel as usize)
    }

    /// The selected queue, while the driver may change it: before DRIVER_OK, and not once it is
    /// ready.
    fn queue_to_set_up(&mut self) -> Option<&mut Queue> {
        let set_up = VIRTIO_CONFIG_S_FEATURES_OK;
        if self.status & (set_up | VIRTIO_CONFIG_S_DRIVER_OK) != set_up {
            return None;
        }
        self.queues.get_mut(self.queue_sel as usize)
    }

    fn status(&self) -> u32 {
        if self.interrupt.needs_reset.load(Ordering::SeqCst) {
            self.status | VIRTIO_CONFIG_S_NEEDS_RESET
        } else {
            self.status
        }
    }

    fn read(&self, register: u64) -> u32 {
        match register {
            MAGIC => MAGIC_VALUE,
            VERSION => VERSION_VALUE,
            DEVICE_ID => self.id,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => half(self.offered, self.device_features_sel),
            QUEUE_SIZE_MAX => self.queue().map_or(0, |queue| queue.max_size().into()),
            QUEUE_READY => self.queue().map_or(0, |queue| queue.ready().into()),
            INTERRUPT_STATUS => self.interrupt.reasons.load(Ordering::SeqCst),
            STATUS => self.status(),
            // There is no shared memory: its length and place are all ones.
            SHM_LEN_LOW..=SHM_BASE_HIGH => u32::MAX,
            CONFIG_GENERATION => self.config.generation(),
            _ => 0,
        }
    }

    fn write(&mut self, register: u64, value: u32) {
        match register {
            DEVICE_FEATURES_SEL => self.device_features_sel = value,
            DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            DRIVER_FEATURES => self.accept(value),
            QUEUE_SEL => self.queue_sel = value,
            QUEUE_NOTIFY => {
                if let Some(doorbell) = self.doorbells.get(value as usize) {
                    // A full counter means that it rings anyway.
                    let _ = doorbell.write(1);
                }
            }
            INTERRUPT_ACK => {
                self.interrupt.reasons.fetch_and(!value, Ordering::SeqCst);
            }
            STATUS => self.set_status(value),
            QUEUE_READY if value == 0 => self.close_queue(),
            _ => self.set_up_queue(register, value),
        }
    }

    fn set_up_queue(&mut self, register: u64, value: u32) {
        let Some(queue) = self.queue_to_set_up() else {
            return;
        };
        let ready = queue.ready();
        match register {
            QUEUE_READY => queue.set_ready(value == 1),
            _ if ready => {}
            // Sizes that are no power of two or too large are not taken.
            QUEUE_SIZE => queue.set_size(u16::try_from(value).unwrap_or(0)),
            QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    /// The driver takes features, until it says that it has all.
    fn accept(&mut self, value: u32) {
        let negotiating = VIRTIO_CONFIG_S_DRIVER;
        if self.status & (negotiating | VIRTIO_CONFIG_S_FEATURES_OK) != negotiating
            || self.driver_features_sel > 1
        {
            return;
        }
        let shift = self.driver_features_sel * 32;
        let kept = self.accepted & !(u64::from(u32::MAX) << shift);
        self.accepted = kept | u64::from(value) << shift;
    }

    /// The driver sets bits one after the other and never clears one, except all by a reset.
    fn set_status(&mut self, value: u32) {
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

    fn features_are_fine(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & 1 << VIRTIO_F_VERSION_1 != 0
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
                Err(error) => return self.interrupt.fail(&error),
            }
        }
        let Stage::Idle(device) = std::mem::replace(&mut self.stage, Stage::Lost) else {
            return self.interrupt.fail("it runs already");
        };
        let queues = Queues::new(rings, Arc::clone(&self.interrupt));
        match Worker::start(device, queues, doorbells, self.accepted) {
            Ok(worker) => self.stage = Stage::Running(worker),
            Err((device, error)) => {
                self.stage = Stage::Idle(device);
                return self.interrupt.fail(&error.to_string());
            }
        }
        self.connect_doorbells(true);
    }

    fn connect_doorbells(&self, on: bool) {
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
        {
            log::debug!("virtio queue {number}: no ioeventfd: {error}");
        }
    }

    /// The driver takes the selected queue back, and waits until it is no longer ready (4.2.2.2). It
    /// cannot set it up again before a reset, once the device runs.
    fn close_queue(&mut self) {
        let Some(number) = u16::try_from(self.queue_sel)
            .ok()
            .filter(|_| self.queue().is_some_and(QueueT::ready))
        else {
            return;
        };
        if let Stage::Running(worker) = &self.stage {
            self.connect_doorbell(number, false);
            worker.close(number.into());
        }
        if let Some(queue) = self.queues.get_mut(usize::from(number)) {
            queue.set_ready(false);
        }
    }

    /// Stops the worker, if there is one; returns when the device is back.
    fn stop(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::Running(worker) => {
                self.connect_doorbells(false);
                if let Some(device) = worker.stop() {
                    self.stage = Stage::Idle(device);
                }
            }
            stage => self.stage = stage,
        }
    }

    fn reset(&mut self) {
        self.stop();
        (self.status, self.accepted) = (0, 0);
        (
            self.device_features_sel,
            self.driver_features_sel,
            self.queue_sel,
        ) = (0, 0, 0);
        self.queues.iter_mut().for_each(QueueT::reset);
        for doorbell in &self.doorbells {
            // Reading only resets the counter.
            let _ = doorbell.read();
        }
        self.interrupt.reasons.store(0, Ordering::SeqCst);
        // A device whose worker is gone stays unusable.
        let lost = matches!(self.stage, Stage::Lost);
        self.interrupt.needs_reset.store(lost, Ordering::SeqCst);
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.stop();
    }
}

impl BusDevice for VirtioMmio {
    /// The registers are words; the configuration space takes any access.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.0);
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            state.config.read(offset, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *word = state.read(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Outcome {
        let mut state = lock(&self.0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            state.config.write(offset, data);
        } else if let Ok(word) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            state.write(offset, u32::from_le_bytes(word));
        }
        Outcome::Continue
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
