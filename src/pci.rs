//! Puts virtio devices on the PCI bus, and the bus on the machine's.

use std::io;
use std::sync::Arc;

use arch::{DeviceKind, DevicePlan, GuestRam, MachinePlan};
use devices::BusEntry;
use devices::pci::{PciFunction, PciHost};
use devices::virtio::{VirtioDevice, VirtioPci};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::Error;
use crate::devices::TakeBack;
use crate::msi::MsiRoutes;

/// A bus that gets its functions.
pub(crate) struct PciBus {
    pub(crate) routes: Arc<MsiRoutes>,
    /// With their slots.
    pub(crate) functions: Vec<(u8, Arc<dyn PciFunction>)>,
}

impl PciBus {
    /// Puts a device into its slot. Says how to have it back.
    pub(crate) fn add(
        &mut self,
        device: Box<dyn VirtioDevice>,
        planned: &DevicePlan,
        slot: u8,
        vm: &Arc<VmFd>,
        ram: &GuestRam,
    ) -> Result<TakeBack, Error> {
        let failed = || Error::host("cannot make a virtio device");
        let base = u32::try_from(planned.range.base);
        let base = base.map_err(|error| failed()(io::Error::other(error)))?;
        // One for each queue, one for the configuration.
        let messages = u32::try_from(device.queue_sizes().len() + 1).unwrap_or(u32::MAX);
        let messages = Box::new(self.routes.device(slot, messages));
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
        let function = VirtioPci::new(device, ram.clone(), base, messages, connect);
        let function = Arc::new(function.map_err(failed())?);
        self.functions.push((slot, function.clone()));
        Ok(Box::new(move || function.take_device()))
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
