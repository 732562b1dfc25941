//! Messages on their way to the guest: each is a GSI, which KVM's routing table turns into the message,
//! raised by an irqfd. Those of PCI devices have GSIs of their own; an I/O APIC of the VMM gives lines
//! theirs.
//!
//! KVM takes the whole table at once, so the machine has one; it begins with the wired lines of the
//! interrupt chip. Devices change their part of it and hand the table in when they are done.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arch::{Gsi, IrqModel, WiredRoute};
use devices::{Message, Rare, Route};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irq_routing_msi,
};
use kvm_ioctls::{Cap, VmFd};

/// By GSI: the device, and what it sends.
type Messages = BTreeMap<Gsi, (u32, Message)>;

fn lock(messages: &Mutex<Messages>) -> MutexGuard<'_, Messages> {
    messages.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The routing table of a VM.
pub(crate) struct MsiRoutes {
    vm: Arc<VmFd>,
    wired: Vec<WiredRoute>,
    /// The address that KVM is told, from the guest's.
    address: Box<dyn Fn(u64) -> u64 + Send + Sync>,
    /// Messages carry the number of their device.
    with_device: bool,
    messages: Mutex<Messages>,
}

impl MsiRoutes {
    /// A table with the wired lines of an interrupt chip.
    pub(crate) fn new<C: IrqModel + 'static>(vm: Arc<VmFd>, chip: &C) -> Arc<Self> {
        let (wired, chip) = (chip.wired_routes(), chip.clone());
        Arc::new(Self {
            with_device: vm.check_extension(Cap::MsiDevid),
            vm,
            wired,
            address: Box::new(move |address| chip.message_address(address)),
            messages: Mutex::default(),
        })
    }

    /// What gives the lines of the machine their messages.
    pub(crate) fn lines(self: &Arc<Self>) -> Route {
        let (routes, errors) = (Arc::clone(self), Rare::default());
        Box::new(move |line, message| {
            // No device's number: where messages carry them, there is no I/O APIC.
            let change = (line, message.map(|message| (0, message)));
            let result = routes.change([change]);
            if let Err(error) = &result
                && let Some(times) = errors.again()
            {
                log::warn!("the message of line {line} was refused, {times} times so far: {error}");
            }
            result.is_ok()
        })
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
            let [a, b, c, d, e, f, g, h] = (self.address)(message.address).to_le_bytes();
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

    /// Changes messages, or none of them when KVM refuses. `None` takes one away.
    pub(crate) fn change(
        &self,
        changes: impl IntoIterator<Item = (Gsi, Option<(u32, Message)>)>,
    ) -> io::Result<()> {
        // Until KVM has the table: another device's change must not put an older one in its place.
        let mut messages = lock(&self.messages);
        let mut changed = messages.clone();
        for (gsi, message) in changes {
            match message {
                Some(message) => changed.insert(gsi, message),
                None => changed.remove(&gsi),
            };
        }
        let table = KvmIrqRouting::from_entries(&self.entries(&changed))
            .map_err(|error| io::Error::other(error.to_string()))?;
        self.vm.set_gsi_routing(&table)?;
        *messages = changed;
        Ok(())
    }
}
