//! The PCI transport (VIRTIO 1.3, 4.1): a function with one BAR, which has the common
//! configuration, the interrupt status, the device's configuration, the notifications and the
//! MSI-X table, each on a page of its own.
//!
//! There is no wired interrupt: a driver uses MSI-X, or polls. As with MMIO, registers are served
//! under one lock that the hot path never takes: notifications go to the worker through ioeventfds,
//! which follow the BAR, and messages leave from the worker.

mod choice;
mod common;
mod layout;
mod saved;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_DRIVER_OK;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

pub(crate) use self::choice::Choice;
use self::layout::{
    ACCESS_BAR, ACCESS_DATA, ACCESS_LEN, ACCESS_OFFSET, BAR, COMMON, DEVICE, FIRST_DEVICE, ISR,
    MSIX_CONTROL, NOTIFY, NOTIFY_STEP, PAGE, PENDING, REVISION, TABLE, VENDOR, add_capabilities,
    class,
};
use super::transport::Transport;
use super::{DeviceState, GuestRam, Interrupt, Monitor, VirtioDevice, VirtioTransport};
use crate::descriptor::DiskFile;
use crate::pci::{Config, Header, MsiSink, Msix, PBA_ENTRY, PciFunction, TABLE_ENTRY};
use crate::state::{StateError, VirtioState};
use crate::{Change, ChangeError, Query, Report, Threads, lock};

/// Connects an address, where the driver notifies a queue with a write of any width, to an event,
/// or disconnects it.
pub type ConnectAt = Box<dyn Fn(u64, &EventFd, bool) -> io::Result<()> + Send>;

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
        threads: &Threads,
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
        let transport = Transport::new(device, ram, interrupt, connect, threads)?;
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
}

impl VirtioTransport for VirtioPci {
    fn state(&self) -> DeviceState {
        lock(&self.state).transport.state()
    }

    fn monitor(&self) -> Arc<Monitor> {
        lock(&self.state).transport.monitor()
    }

    fn pause(&self) {
        lock(&self.state).transport.pause();
    }

    fn resume(&self) {
        lock(&self.state).transport.resume();
    }

    fn park(&self) {
        lock(&self.state).transport.park();
    }

    fn unpark(&self) -> io::Result<()> {
        lock(&self.state).transport.unpark()
    }

    fn change(&self, change: &Change) -> Result<(), ChangeError> {
        lock(&self.state).transport.change(change)
    }

    fn replace_file(&self, file: DiskFile, name: &str) -> Result<(), ChangeError> {
        lock(&self.state).transport.replace_file(file, name)
    }

    fn file(&self) -> Result<DiskFile, ChangeError> {
        lock(&self.state).transport.file()
    }

    fn query(&self, query: Query) -> Result<Report, ChangeError> {
        lock(&self.state).transport.query(query)
    }

    fn sync(&self) -> Result<(), StateError> {
        lock(&self.state).transport.sync()
    }

    fn save(&self) -> Result<VirtioState, StateError> {
        lock(&self.state).save()
    }

    fn load(&self, state: &VirtioState) -> Result<(), StateError> {
        lock(&self.state).load(state)
    }

    fn take_device(&self) -> Option<Box<dyn VirtioDevice>> {
        lock(&self.state).transport.take_device()
    }
}

impl State {
    fn queue(&self) -> Option<&Queue> {
        self.transport.queue(self.queue_select.into())
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
