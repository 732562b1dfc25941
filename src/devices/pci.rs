//! Puts virtio devices on the PCI bus, and the bus on the machine's.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use arch::{DeviceKind, DevicePlan, Gsi, GuestRam, MachinePlan};
use devices::pci::{MsiSink, PciFunction, PciHost};
use devices::virtio::{VirtioDevice, VirtioPci};
use devices::{BusEntry, Message, Threads};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::Error;
use crate::devices::gsi::MsiRoutes;
use crate::devices::virtio::not_made;

/// A device's messages: its part of the routing table.
struct DeviceMessages {
    routes: Arc<MsiRoutes>,
    vm: Arc<VmFd>,
    device: u32,
    first_gsi: Gsi,
    /// Which of its messages have an irqfd.
    connected: Vec<u16>,
    /// What it wants to send from the next commit on.
    changes: BTreeMap<Gsi, Message>,
}

impl MsiSink for DeviceMessages {
    fn set(&mut self, vector: u16, event: &EventFd, message: Message) -> io::Result<()> {
        let gsi = self.first_gsi.checked_add(vector.into());
        let gsi = gsi.ok_or(io::ErrorKind::InvalidInput)?;
        self.changes.insert(gsi, message);
        if !self.connected.contains(&vector) {
            self.vm.register_irqfd(event, gsi)?;
            self.connected.push(vector);
        }
        Ok(())
    }

    fn commit(&mut self) -> io::Result<()> {
        let device = self.device;
        let changes = std::mem::take(&mut self.changes).into_iter();
        self.routes
            .change(changes.map(|(gsi, message)| (gsi, Some((device, message)))))
    }
}

/// A bus that gets its functions.
pub(crate) struct PciBus {
    routes: Arc<MsiRoutes>,
    threads: Threads,
    /// With their slots.
    functions: Vec<(u8, Arc<dyn PciFunction>)>,
}

impl PciBus {
    /// A bus without functions.
    pub(crate) fn new(routes: Arc<MsiRoutes>, threads: Threads) -> Self {
        Self {
            routes,
            threads,
            functions: Vec::new(),
        }
    }

    /// Puts a device into its slot.
    pub(crate) fn add(
        &mut self,
        device: Box<dyn VirtioDevice>,
        planned: &DevicePlan,
        slot: u8,
        vm: &Arc<VmFd>,
        ram: &GuestRam,
    ) -> Result<Arc<VirtioPci>, Error> {
        let failed = || not_made(planned);
        let base = u32::try_from(planned.range.base);
        let base = base.map_err(|error| failed()(io::Error::other(error)))?;
        // One for each queue, one for the configuration.
        let count = u32::try_from(device.queue_sizes().len() + 1).unwrap_or(u32::MAX);
        let planned_messages = planned
            .messages
            .filter(|messages| messages.count == count)
            .ok_or_else(|| {
                let cause = format!("it has {count} messages, which is not as planned");
                failed()(io::Error::other(cause))
            })?;
        let messages = Box::new(DeviceMessages {
            routes: Arc::clone(&self.routes),
            vm: Arc::clone(vm),
            // Bus 0, function 0.
            device: u32::from(slot) << 3,
            first_gsi: planned_messages.first,
            connected: Vec::new(),
            changes: BTreeMap::new(),
        });
        let vm = Arc::clone(vm);
        let connect = Box::new(move |address, event: &EventFd, on| {
            let address = IoEventAddress::Mmio(address);
            let result = if on {
                vm.register_ioevent(event, &address, NoDatamatch)
            } else {
                vm.unregister_ioevent(event, &address, NoDatamatch)
            };
            result.map_err(io::Error::from)
        });
        let function = VirtioPci::new(device, ram.clone(), base, messages, connect, &self.threads);
        let function = Arc::new(function.map_err(failed())?);
        self.functions.push((slot, function.clone()));
        Ok(function)
    }

    /// All functions are there: adds what reaches them to the machine's buses.
    pub(crate) fn finish(
        self,
        plan: &MachinePlan,
        mmio: &mut Vec<BusEntry>,
        pio: &mut Vec<BusEntry>,
    ) {
        let host = PciHost::new(self.functions);
        for planned in &plan.devices {
            let (base, len) = (planned.range.base, planned.range.len);
            match planned.kind {
                DeviceKind::PciEcam => mmio.push(BusEntry {
                    base,
                    len,
                    device: host.ecam(),
                }),
                DeviceKind::PciPorts => pio.push(BusEntry {
                    base,
                    len,
                    device: host.ports(),
                }),
                _ => {}
            }
        }
        let windows = plan
            .pci
            .iter()
            .flat_map(|pci| [Some(pci.window32), pci.window64]);
        mmio.extend(windows.flatten().map(|window| BusEntry {
            base: window.base,
            len: window.len,
            device: host.window(window.base),
        }));
    }
}
