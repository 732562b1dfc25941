//! The MMIO transport, version 2 (VIRTIO 1.3, 4.2).
//!
//! A device's registers are served under one lock; the hot path is not here: once the driver is
//! ready, its notifications go to the worker through an ioeventfd.

use std::fmt;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use super::transport::set_up::{Part, set_address, set_size};
use super::transport::{Connect, Transport};
use super::{DeviceState, GuestRam, Interrupt, Monitor, VirtioDevice, VirtioTransport};
use crate::bus::{BusDevice, Outcome};
use crate::descriptor::DiskFile;
use crate::state::{self, MmioRegisters, StateError, TransportRegisters, VirtioState};
use crate::{Change, ChangeError, Query, Report, Threads, lock};

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

struct State {
    transport: Transport,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
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

    /// `line` is the interrupt, pulsed; `threads` makes the device's.
    ///
    /// # Errors
    /// When no events can be made, or a queue's size is none.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: GuestRam,
        line: EventFd,
        connect: Connect,
        threads: &Threads,
    ) -> io::Result<Self> {
        Ok(Self(Mutex::new(State {
            transport: Transport::new(device, ram, Interrupt::new(line), connect, threads)?,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
        })))
    }
}

impl VirtioTransport for VirtioMmio {
    fn state(&self) -> DeviceState {
        lock(&self.0).transport.state()
    }

    fn monitor(&self) -> Arc<Monitor> {
        lock(&self.0).transport.monitor()
    }

    fn pause(&self) {
        lock(&self.0).transport.pause();
    }

    fn resume(&self) {
        lock(&self.0).transport.resume();
    }

    fn park(&self) {
        lock(&self.0).transport.park();
    }

    fn unpark(&self) -> io::Result<()> {
        lock(&self.0).transport.unpark()
    }

    fn change(&self, change: &Change) -> Result<(), ChangeError> {
        lock(&self.0).transport.change(change)
    }

    fn replace_file(&self, file: DiskFile, name: &str) -> Result<(), ChangeError> {
        lock(&self.0).transport.replace_file(file, name)
    }

    fn file(&self) -> Result<DiskFile, ChangeError> {
        lock(&self.0).transport.file()
    }

    fn query(&self, query: Query) -> Result<Report, ChangeError> {
        lock(&self.0).transport.query(query)
    }

    fn sync(&self) -> Result<(), StateError> {
        lock(&self.0).transport.sync()
    }

    fn save(&self) -> Result<VirtioState, StateError> {
        let state = lock(&self.0);
        state
            .transport
            .save(TransportRegisters::Mmio(MmioRegisters {
                device_features_sel: state.device_features_sel,
                driver_features_sel: state.driver_features_sel,
                queue_sel: state.queue_sel,
            }))
    }

    fn load(&self, saved: &VirtioState) -> Result<(), StateError> {
        let TransportRegisters::Mmio(registers) = saved.registers else {
            return Err(StateError::Foreign);
        };
        let mut state = lock(&self.0);
        state.device_features_sel = registers.device_features_sel;
        state.driver_features_sel = registers.driver_features_sel;
        state.queue_sel = registers.queue_sel;
        state.transport.load(saved)
    }

    fn take_device(&self) -> Option<Box<dyn VirtioDevice>> {
        lock(&self.0).transport.take_device()
    }
}

impl State {
    fn read(&self, register: u64) -> u32 {
        let transport = &self.transport;
        let queue = transport.queue(self.queue_sel);
        match register {
            MAGIC => MAGIC_VALUE,
            VERSION => VERSION_VALUE,
            DEVICE_ID => transport.id(),
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => transport.offered(self.device_features_sel),
            QUEUE_SIZE_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            QUEUE_READY => queue.map_or(0, |queue| queue.ready().into()),
            INTERRUPT_STATUS => transport.interrupt().reasons.load(Ordering::SeqCst),
            STATUS => transport.status(),
            // There is no shared memory: its length and place are all ones.
            SHM_LEN_LOW..=SHM_BASE_HIGH => u32::MAX,
            CONFIG_GENERATION => transport.config().generation(),
            _ => 0,
        }
    }

    fn write(&mut self, register: u64, value: u32) {
        let transport = &mut self.transport;
        match register {
            DEVICE_FEATURES_SEL => self.device_features_sel = value,
            DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            DRIVER_FEATURES => transport.accept(self.driver_features_sel, value),
            QUEUE_SEL => self.queue_sel = value,
            QUEUE_NOTIFY => transport.notify(value),
            INTERRUPT_ACK => {
                let reasons = &transport.interrupt().reasons;
                reasons.fetch_and(!value, Ordering::SeqCst);
            }
            STATUS => {
                transport.set_status(value);
                if value == 0 {
                    self.device_features_sel = 0;
                    self.driver_features_sel = 0;
                    self.queue_sel = 0;
                }
            }
            // A driver that takes a queue back waits until it is no longer ready (4.2.2.2).
            QUEUE_READY if value == 0 => transport.close_queue(self.queue_sel),
            _ => self.set_up_queue(register, value),
        }
    }

    fn set_up_queue(&mut self, register: u64, value: u32) {
        let Some(queue) = self.transport.queue_to_set_up(self.queue_sel) else {
            return;
        };
        match register {
            QUEUE_READY => queue.set_ready(value == 1),
            // Sizes that are no power of two or too large are not taken.
            QUEUE_SIZE => set_size(queue, u16::try_from(value).unwrap_or(0)),
            QUEUE_DESC_LOW => set_address(queue, Part::Descriptors, Some(value), None),
            QUEUE_DESC_HIGH => set_address(queue, Part::Descriptors, None, Some(value)),
            QUEUE_DRIVER_LOW => set_address(queue, Part::Driver, Some(value), None),
            QUEUE_DRIVER_HIGH => set_address(queue, Part::Driver, None, Some(value)),
            QUEUE_DEVICE_LOW => set_address(queue, Part::Device, Some(value), None),
            QUEUE_DEVICE_HIGH => set_address(queue, Part::Device, None, Some(value)),
            _ => {}
        }
    }
}

impl BusDevice for VirtioMmio {
    /// The registers are words; the configuration space takes any access.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.0);
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            state.transport.config().read(offset, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *word = state.read(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Outcome {
        let mut state = lock(&self.0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            state.transport.config().write(offset, data);
        } else if let Ok(word) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            state.write(offset, u32::from_le_bytes(word));
        }
        Outcome::Continue
    }

    fn save(&self) -> Option<state::DeviceState> {
        Some(state::DeviceState::ById {})
    }

    fn load(&self, state: &state::DeviceState) -> Result<(), StateError> {
        state.is_by_id()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
