//! The PCI transport (VIRTIO 1.3, 4.1): a function with one BAR, which has the common
//! configuration, the interrupt status, the device's configuration, the notifications and the
//! MSI-X table, each on a page of its own.
//!
//! There is no wired interrupt: a driver uses MSI-X, or polls. As with MMIO, registers are served
//! under one lock that the hot path never takes: notifications go to the worker through ioeventfds,
//! which follow the BAR, and messages leave from the worker.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_DRIVER_OK;
use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_NET, VIRTIO_ID_VSOCK,
};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::transport::{Part, Transport, set_address, set_size};
use super::{GuestRam, Interrupt, VirtioDevice};
use crate::lock;
use crate::pci::{Config, Header, MsiSink, Msix, PBA_ENTRY, PciFunction, TABLE_ENTRY, Vectors};

/// Every virtio device, and the number that its type is added to (4.1.2).
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
/// 1 or more for devices without a legacy interface.
const REVISION: u8 = 1;

/// Where the parts of the BAR are.
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
const PAGE: u64 = 0x1000;
const PAGE_LEN: u32 = 0x1000;
/// Bytes of the BAR.
const BAR: u32 = 0x8000;
/// Bytes from one queue's notification to the next.
const NOTIFY_STEP: u32 = 4;

/// Parts of the BAR, as capabilities name them (4.1.4): common configuration, notifications,
/// interrupt status, the device's configuration, accesses through the configuration space.
const COMMON_PART: u8 = 1;
const NOTIFY_PART: u8 = 2;
const ISR_PART: u8 = 3;
const DEVICE_PART: u8 = 4;
const ACCESS_PART: u8 = 5;

/// Capability ids (PCI Local Bus Specification 3.0, appendix H).
const VENDOR_SPECIFIC: u8 = 0x09;
const MSI_X: u8 = 0x11;
/// In the MSI-X capability: the control word, and its bits that the guest may write.
const MSIX_CONTROL: usize = 2;
const MSIX_WRITABLE: u16 = 0xc000;
/// In the capability for accesses to the BAR (4.1.4.9): where, how many bytes, the bytes.
const ACCESS_BAR: usize = 4;
const ACCESS_OFFSET: usize = 8;
const ACCESS_LEN: usize = 12;
const ACCESS_DATA: usize = 16;

/// Fields of the common configuration (4.1.4.3).
const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const DEVICE_STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;
const COMMON_LEN: usize = 0x38;
/// No message.
const NO_VECTOR: u16 = 0xffff;

/// Connects an address, where the driver notifies a queue with a write of any width, to an event,
/// or disconnects it.
pub type ConnectAt = Box<dyn Fn(u64, &EventFd, bool) -> io::Result<()> + Send>;

/// Which messages the driver has chosen.
#[derive(Debug)]
pub(crate) struct Choice {
    vectors: Arc<Vectors>,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
}

impl Choice {
    fn new(vectors: Arc<Vectors>, queues: usize) -> Self {
        Self {
            vectors,
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        }
    }

    /// Chooses a message; one that there is not is none.
    fn choose(&self, place: Option<&AtomicU16>, vector: u16) {
        if let Some(place) = place {
            let known = usize::from(vector) < self.vectors.count();
            let vector = if known { vector } else { NO_VECTOR };
            place.store(vector, Ordering::SeqCst);
        }
    }

    fn reset(&self) {
        for place in self.queues.iter().chain([&self.config]) {
            place.store(NO_VECTOR, Ordering::SeqCst);
        }
    }

    pub(crate) fn raise_config(&self) {
        self.vectors.raise(self.config.load(Ordering::SeqCst));
    }

    /// For these queues, a bit each: a message that several share is sent once.
    pub(crate) fn raise_queues(&self, queues: u32) {
        let mut messages = 0u64;
        for (number, place) in (0u32..).zip(&self.queues) {
            if queues & 1u32.unbounded_shl(number) != 0 {
                let vector = place.load(Ordering::SeqCst);
                messages |= 1u64.unbounded_shl(vector.into());
            }
        }
        while messages != 0 {
            let vector = messages.trailing_zeros();
            messages &= messages - 1;
            self.vectors
                .raise(u16::try_from(vector).unwrap_or(NO_VECTOR));
        }
    }
}

struct State {
    transport: Transport,
    config: Config,
    msix: Msix,
    choice: Arc<Choice>,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    /// Where the capabilities are that do something.
    msix_capability: usize,
    access_capability: usize,
    /// Where the BAR answers, or 0; doorbells are connected there.
    place: Arc<AtomicU64>,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    state: Mutex<State>,
    place: Arc<AtomicU64>,
}

impl fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioPci").finish_non_exhaustive()
    }
}

impl VirtioPci {
    /// A function whose BAR is at `base` at first; `messages` is how its interrupts leave.
    ///
    /// # Errors
    /// When no events can be made, or a queue's size is none.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: GuestRam,
        base: u32,
        messages: Box<dyn MsiSink>,
        connect: ConnectAt,
    ) -> io::Result<Self> {
        let queues = device.queue_sizes().len();
        // One for the configuration.
        let msix = Msix::new(queues + 1, messages)?;
        let choice = Arc::new(Choice::new(msix.vectors(), queues));
        let place = Arc::new(AtomicU64::new(base.into()));
        let doorbells = Arc::clone(&place);
        let connect = Box::new(move |queue: u16, event: &EventFd, on| {
            match doorbells.load(Ordering::SeqCst) {
                0 => Ok(()),
                base => {
                    let offset = NOTIFY + u64::from(NOTIFY_STEP) * u64::from(queue);
                    connect(base + offset, event, on)
                }
            }
        });
        let interrupt = Interrupt::by_messages(Arc::clone(&choice));
        let (id, name) = (device.id(), device.name());
        let transport = Transport::new(device, ram, interrupt, connect)?;
        let number = u16::try_from(id).ok();
        let device = number.and_then(|id| FIRST_DEVICE.checked_add(id));
        let mut config = Config::new(Header {
            vendor: VENDOR,
            device: device.ok_or_else(|| io::Error::other(format!("{name} has no PCI id")))?,
            revision: REVISION,
            class: class(id),
        });
        config.add_bar(base, BAR);
        let (access_capability, msix_capability) = add_capabilities(&mut config, queues);
        Ok(Self {
            place: Arc::clone(&place),
            state: Mutex::new(State {
                transport,
                config,
                msix,
                choice,
                device_feature_select: 0,
                driver_feature_select: 0,
                queue_select: 0,
                msix_capability,
                access_capability,
                place,
            }),
        })
    }

    /// Resets the device and gives it back, for another transport: nothing is behind this one any
    /// more. `None` when the device is lost.
    pub fn take_device(&self) -> Option<Box<dyn VirtioDevice>> {
        lock(&self.state).transport.take_device()
    }
}

/// Class, subclass, programming interface of a type of device (PCI Local Bus Specification 3.0,
/// appendix D).
fn class(id: u32) -> [u8; 3] {
    match id {
        VIRTIO_ID_NET => [0x02, 0x00, 0x00],
        VIRTIO_ID_BLOCK => [0x01, 0x80, 0x00],
        VIRTIO_ID_CONSOLE => [0x07, 0x80, 0x00],
        VIRTIO_ID_VSOCK => [0x02, 0x80, 0x00],
        // It fits no class.
        _ => [0xff, 0x00, 0x00],
    }
}

/// Says where in the BAR the parts are (4.1.4). Gives the offsets of the capability for accesses
/// through the configuration space, and of MSI-X.
fn add_capabilities(config: &mut Config, queues: usize) -> (usize, usize) {
    let queues = u32::try_from(queues).unwrap_or(0);
    let part = |kind: u8, offset: u64, len: u32, more: &[u8]| {
        let size = u8::try_from(16 + more.len()).unwrap_or(u8::MAX);
        // Length, type, BAR 0, id, two bytes of nothing.
        let mut content = vec![size, kind, 0, 0, 0, 0];
        content.extend(u32::try_from(offset).unwrap_or(0).to_le_bytes());
        content.extend(len.to_le_bytes());
        content.extend(more);
        content
    };
    let common = u32::try_from(COMMON_LEN).unwrap_or(0);
    let step = NOTIFY_STEP.to_le_bytes();
    for content in [
        part(COMMON_PART, COMMON, common, &[]),
        part(NOTIFY_PART, NOTIFY, queues * NOTIFY_STEP, &step),
        part(ISR_PART, ISR, 1, &[]),
        part(DEVICE_PART, DEVICE, PAGE_LEN, &[]),
    ] {
        config.add_capability(VENDOR_SPECIFIC, &content);
    }
    let content = part(ACCESS_PART, 0, 0, &[0; 4]);
    let access = config.add_capability(VENDOR_SPECIFIC, &content);
    config.allow(access + ACCESS_BAR, &[0xff]);
    config.allow(access + ACCESS_OFFSET, &[0xff; 12]);
    // The number of messages less one; table and pending bits, both in BAR 0.
    let mut content = u16::try_from(queues).unwrap_or(0).to_le_bytes().to_vec();
    for offset in [TABLE, PENDING] {
        content.extend(u32::try_from(offset).unwrap_or(0).to_le_bytes());
    }
    let msix = config.add_capability(MSI_X, &content);
    config.allow(msix + MSIX_CONTROL, &MSIX_WRITABLE.to_le_bytes());
    (access, msix)
}

impl State {
    fn queue(&self) -> Option<&Queue> {
        self.transport.queue(self.queue_select.into())
    }

    /// The common configuration as it reads now.
    fn common(&self) -> [u8; COMMON_LEN] {
        let transport = &self.transport;
        let queue = self.queue();
        let vector = |place: Option<&AtomicU16>| {
            place.map_or(NO_VECTOR, |place| place.load(Ordering::SeqCst))
        };
        let queue_vector = vector(self.choice.queues.get(usize::from(self.queue_select)));
        let queues = u16::try_from(self.choice.queues.len()).unwrap_or(0);
        let address = |of: fn(&Queue) -> u64| queue.map_or(0, of);
        // Status bits end at the eighth, a generation may wrap.
        let [status, ..] = transport.status().to_le_bytes();
        let [generation, ..] = transport.config().generation().to_le_bytes();
        let fields: [&[u8]; 16] = [
            &self.device_feature_select.to_le_bytes(),
            &transport.offered(self.device_feature_select).to_le_bytes(),
            &self.driver_feature_select.to_le_bytes(),
            &transport.accepted(self.driver_feature_select).to_le_bytes(),
            &vector(Some(&self.choice.config)).to_le_bytes(),
            &queues.to_le_bytes(),
            &[status],
            &[generation],
            &self.queue_select.to_le_bytes(),
            &queue.map_or(0, QueueT::size).to_le_bytes(),
            &queue_vector.to_le_bytes(),
            &queue
                .map_or(0, |queue| u16::from(queue.ready()))
                .to_le_bytes(),
            // Which notification is the queue's: the one of its number.
            &queue.map_or(0, |_| self.queue_select).to_le_bytes(),
            &address(QueueT::desc_table).to_le_bytes(),
            &address(QueueT::avail_ring).to_le_bytes(),
            &address(QueueT::used_ring).to_le_bytes(),
        ];
        let mut bytes = [0; COMMON_LEN];
        for (to, from) in bytes.iter_mut().zip(fields.concat()) {
            *to = from;
        }
        bytes
    }

    /// Writes a field of the common configuration, with its own width; addresses also by halves.
    fn write_common(&mut self, offset: u64, data: &[u8]) {
        if let Ok(bytes) = <[u8; 8]>::try_from(data) {
            if offset.is_multiple_of(8) && offset >= QUEUE_DESC {
                let (halves, _) = bytes.as_chunks::<4>();
                for (place, half) in (offset..).step_by(4).zip(halves) {
                    self.write_common(place, half);
                }
            }
        } else if let Ok(bytes) = <[u8; 4]>::try_from(data) {
            self.write_word(offset, u32::from_le_bytes(bytes));
        } else if let Ok(bytes) = <[u8; 2]>::try_from(data) {
            self.write_half_word(offset, u16::from_le_bytes(bytes));
        } else if let (DEVICE_STATUS, [status]) = (offset, data) {
            self.set_status((*status).into());
        }
    }

    fn write_word(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            DRIVER_FEATURE => self.transport.accept(self.driver_feature_select, value),
            _ => {
                let Some(queue) = self.transport.queue_to_set_up(self.queue_select.into()) else {
                    return;
                };
                let (low, high) = match offset & 4 {
                    0 => (Some(value), None),
                    _ => (None, Some(value)),
                };
                match offset & !4 {
                    QUEUE_DESC => set_address(queue, Part::Descriptors, low, high),
                    QUEUE_DRIVER => set_address(queue, Part::Driver, low, high),
                    QUEUE_DEVICE => set_address(queue, Part::Device, low, high),
                    _ => {}
                }
            }
        }
    }

    fn write_half_word(&mut self, offset: u64, value: u16) {
        let runs = self.transport.status() & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        let select = usize::from(self.queue_select);
        match offset {
            QUEUE_SELECT => self.queue_select = value,
            // R7: fixed while the device runs.
            CONFIG_VECTOR if !runs => self.choice.choose(Some(&self.choice.config), value),
            QUEUE_VECTOR if !runs => {
                let place = self.choice.queues.get(select);
                self.choice.choose(place, value);
            }
            QUEUE_SIZE | QUEUE_ENABLE => {
                if let Some(queue) = self.transport.queue_to_set_up(self.queue_select.into()) {
                    match offset {
                        QUEUE_SIZE => set_size(queue, value),
                        _ => queue.set_ready(value == 1),
                    }
                }
            }
            _ => {}
        }
    }

    fn set_status(&mut self, status: u32) {
        if status & !self.transport.status() & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            // Messages may leave from the first moment on.
            self.msix.commit();
        }
        self.transport.set_status(status);
        if status == 0 {
            self.device_feature_select = 0;
            self.driver_feature_select = 0;
            self.queue_select = 0;
            self.choice.reset();
            self.msix.forget_pending();
        }
    }

    fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let inside = offset % PAGE;
        match offset - inside {
            COMMON => {
                let skipped = usize::try_from(inside).unwrap_or(usize::MAX);
                for (to, from) in data.iter_mut().zip(self.common().iter().skip(skipped)) {
                    *to = *from;
                }
            }
            ISR => {
                // Reading acknowledges.
                let reasons = self.transport.interrupt().reasons.swap(0, Ordering::SeqCst);
                if let Some(first) = data.first_mut() {
                    [*first, ..] = reasons.to_le_bytes();
                }
            }
            DEVICE => self.transport.config().read(inside, data),
            TABLE => self.msix.read_table(inside, data),
            PENDING => self.msix.read_pending(inside, data),
            _ => {}
        }
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) {
        let inside = offset % PAGE;
        match offset - inside {
            COMMON => self.write_common(inside, data),
            DEVICE => self.transport.config().write(inside, data),
            NOTIFY => {
                let queue = inside / u64::from(NOTIFY_STEP);
                self.transport
                    .notify(u32::try_from(queue).unwrap_or(u32::MAX));
            }
            TABLE => {
                self.msix.write_table(inside, data);
                self.messages_changed();
            }
            _ => {}
        }
    }

    /// While the device runs, changes count at once.
    fn messages_changed(&mut self) {
        if self.transport.is_running() {
            self.msix.commit();
        }
    }

    /// What the driver wants to reach of the BAR through the configuration space: offset and length.
    fn access(&self) -> Option<(u64, usize)> {
        let field = |offset| u32::from_le_bytes(self.config.get(self.access_capability + offset));
        let [bar] = self.config.get(self.access_capability + ACCESS_BAR);
        let (offset, len) = (field(ACCESS_OFFSET), field(ACCESS_LEN));
        let fits = offset.checked_add(len).is_some_and(|end| end <= BAR);
        let legal = bar == 0 && matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len) && fits;
        legal.then_some((offset.into(), usize::try_from(len).unwrap_or(0)))
    }

    /// Whether bytes of the configuration space are those of such an access.
    fn is_access(&self, offset: usize, data: &[u8]) -> bool {
        let data_at = self.access_capability + ACCESS_DATA;
        offset < data_at + 4 && data_at < offset.saturating_add(data.len())
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        if self.is_access(offset, data)
            && let Some((place, len)) = self.access()
        {
            let mut bytes = [0; 4];
            self.read_bar(place, bytes.get_mut(..len).unwrap_or_default());
            let at = self.access_capability + ACCESS_DATA;
            self.config.write(at, &bytes);
        }
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let is_access = self.is_access(offset, data);
        let was_master = self.config.is_bus_master();
        self.config.write(offset, data);
        if was_master && !self.config.is_bus_master() {
            self.transport.cut_off();
        }
        if is_access && let Some((place, len)) = self.access() {
            let bytes: [u8; 4] = self.config.get(self.access_capability + ACCESS_DATA);
            self.write_bar(place, bytes.get(..len).unwrap_or_default());
        }
        let control = self.config.get(self.msix_capability + MSIX_CONTROL);
        if self.msix.set_control(u16::from_le_bytes(control)) {
            self.messages_changed();
        }
        let place = self.config.bar().map_or(0, u64::from);
        if place != self.place.load(Ordering::SeqCst) {
            let runs = self.transport.is_running();
            if runs {
                self.transport.connect_doorbells(false);
            }
            self.place.store(place, Ordering::SeqCst);
            if runs {
                self.transport.connect_doorbells(true);
            }
        }
    }
}

impl PciFunction for VirtioPci {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        lock(&self.state).read_config(offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        lock(&self.state).write_config(offset, data);
    }

    fn bar(&self) -> Option<(u64, u64)> {
        match self.place.load(Ordering::SeqCst) {
            0 => None,
            base => Some((base, BAR.into())),
        }
    }

    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        lock(&self.state).read_bar(offset, data);
    }

    fn write_bar(&self, offset: u64, data: &[u8]) {
        lock(&self.state).write_bar(offset, data);
    }
}

// The largest device has 32 queues: its tables fit their pages, and a bit each their masks.
const _: () = assert!(33 * TABLE_ENTRY <= PAGE && PBA_ENTRY <= PAGE);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
