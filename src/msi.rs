//! Messages of PCI devices on their way to the guest: each is a GSI of its own, which KVM's routing
//! table turns into the message, raised by an irqfd.
//!
//! KVM takes the whole table at once, so the machine has one; it begins with the wired lines of the
//! interrupt chip. Devices change their part of it and hand the table in when they are done.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arch::{Gsi, WiredRoute};
use devices::pci::{Message, MsiSink};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irq_routing_msi,
};
use kvm_ioctls::{Cap, VmFd};
use vmm_sys_util::eventfd::EventFd;

/// By GSI: the device, and what it sends.
type Messages = BTreeMap<Gsi, (u32, Message)>;

fn lock(messages: &Mutex<Messages>) -> MutexGuard<'_, Messages> {
    messages.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The routing table of a VM.
pub(crate) struct MsiRoutes {
    vm: Arc<VmFd>,
    wired: Vec<WiredRoute>,
    /// Messages carry the number of their device.
    with_device: bool,
    next_gsi: AtomicU32,
    messages: Mutex<Messages>,
}

impl MsiRoutes {
    /// A table with these wired lines, and messages from `first_gsi` on.
    pub(crate) fn new(vm: Arc<VmFd>, wired: Vec<WiredRoute>, first_gsi: Gsi) -> Arc<Self> {
        Arc::new(Self {
            with_device: vm.check_extension(Cap::MsiDevid),
            vm,
            wired,
            next_gsi: AtomicU32::new(first_gsi),
            messages: Mutex::default(),
        })
    }

    /// The part of a device in slot `slot` of the bus with so many messages.
    pub(crate) fn device(self: &Arc<Self>, slot: u8, messages: u32) -> DeviceMessages {
        DeviceMessages {
            routes: Arc::clone(self),
            // Bus 0, function 0.
            device: u32::from(slot) << 3,
            first_gsi: self.next_gsi.fetch_add(messages, Ordering::Relaxed),
            connected: Vec::new(),
            changes: Vec::new(),
        }
    }

    fn entries(&self, messages: &Messages) -> Vec<kvm_irq_routing_entry> {
        let mut entries = Vec::new();
        for route in &self.wired {
            let mut entry = kvm_irq_routing_entry {
                gsi: route.gsi,
                type_: KVM_IRQ_ROUTING_IRQCHIP,
                ..Default::default()
            };
            entry.u.irqchip.irqchip = route.chip;
            entry.u.irqchip.pin = route.pin;
            entries.push(entry);
        }
        for (gsi, (device, message)) in messages {
            let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
            let mut msi = kvm_irq_routing_msi {
                address_lo: u32::from_le_bytes([a, b, c, d]),
                address_hi: u32::from_le_bytes([e, f, g, h]),
                data: message.data,
                ..Default::default()
            };
            let mut flags = 0;
            if self.with_device {
                msi.__bindgen_anon_1.devid = *device;
                flags = KVM_MSI_VALID_DEVID;
            }
            let mut entry = kvm_irq_routing_entry {
                gsi: *gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                flags,
                ..Default::default()
            };
            entry.u.msi = msi;
            entries.push(entry);
        }
        entries
    }

    /// Changes messages, or none of them when KVM refuses.
    fn change(&self, changes: impl Iterator<Item = (Gsi, (u32, Message))>) -> io::Result<()> {
        // Until KVM has the table: another device's change must not put an older one in its place.
        let mut messages = lock(&self.messages);
        let mut changed = messages.clone();
        changed.extend(changes);
        let table = KvmIrqRouting::from_entries(&self.entries(&changed))
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        self.vm.set_gsi_routing(&table)?;
        *messages = changed;
        Ok(())
    }
}

/// A device's part of the table.
pub(crate) struct DeviceMessages {
    routes: Arc<MsiRoutes>,
    device: u32,
    first_gsi: Gsi,
    /// Which of its messages have an irqfd.
    connected: Vec<u16>,
    /// What it wants to send from the next commit on.
    changes: Vec<(Gsi, Message)>,
}

impl MsiSink for DeviceMessages {
    fn set(&mut self, vector: u16, event: &EventFd, message: Message) -> io::Result<()> {
        let gsi = self.first_gsi + u32::from(vector);
        self.changes.push((gsi, message));
        if !self.connected.contains(&vector) {
            self.routes.vm.register_irqfd(event, gsi)?;
            self.connected.push(vector);
        }
        Ok(())
    }

    fn commit(&mut self) -> io::Result<()> {
        let device = self.device;
        let changes = std::mem::take(&mut self.changes).into_iter();
        self.routes
            .change(changes.map(|(gsi, message)| (gsi, (device, message))))
    }
}
