//! Makes the planned devices and puts them on the bus.

mod counted;
pub(crate) mod generation;
pub(crate) mod gsi;
pub(crate) mod lines;
pub(crate) mod opened;
pub(crate) mod own;
#[cfg(feature = "pci")]
pub(crate) mod pci;
pub(crate) mod registry;
#[cfg(feature = "virtio")]
pub(crate) mod virtio;

use std::sync::Arc;

use arch::{DeviceKind, DevicePlan, GuestRam, MachinePlan, Space};
use devices::{
    AcpiPower, Bus, BusDevice, BusEntry, Cmos, CtrlAltDel, GoldfishRtc, I8042, IoApic, OutputRing,
    Pl031, Pl061, PowerButton, Pvpanic,
};
use kvm_ioctls::VmFd;

use crate::Error;
use crate::console::Port;
use crate::devices::generation::Generation;
use crate::devices::lines::{Lines, interrupt};
use crate::devices::opened::HostDevices;
use crate::devices::registry::Registry;
use crate::vm::dispatch::IoSpaces;

/// The devices of a VM.
pub(crate) struct Devices {
    pub(crate) spaces: IoSpaces,
    pub(crate) serial: Option<Port>,
    pub(crate) virtio_console: Option<Port>,
    pub(crate) power_button: Option<Arc<dyn PowerButton>>,
    /// With an interrupt.
    pub(crate) keyboard: Option<Arc<dyn CtrlAltDel>>,
    pub(crate) generation: Option<Generation>,
    pub(crate) registry: Registry,
}

impl Devices {
    /// What the guest prints, on each of its consoles.
    pub(crate) fn output(&self) -> Vec<OutputRing> {
        let ports = self.serial.iter().chain(&self.virtio_console);
        ports.map(|port| port.output.ring.clone()).collect()
    }
}

/// Puts every device of the plan on its bus and wires its interrupt.
pub(crate) fn create(
    plan: &MachinePlan,
    lines: &Lines<'_>,
    #[cfg_attr(not(feature = "virtio"), allow(unused_mut))] mut opened: HostDevices,
    vm: &Arc<VmFd>,
    ram: &GuestRam,
) -> Result<Devices, Error> {
    let mut serial = None;
    let mut power_button: Option<Arc<dyn PowerButton>> = None;
    let mut events = None;
    let mut keyboard: Option<Arc<dyn CtrlAltDel>> = None;
    #[cfg(not(feature = "virtio"))]
    let _ = (vm, ram);
    let mut registry = Registry::default();
    #[cfg(feature = "pci")]
    let mut pci = plan.pci.as_ref().map(|_| {
        crate::devices::pci::PciBus::new(Arc::clone(&lines.routes), lines.threads.clone())
    });
    let (mut mmio, mut pio) = (Vec::new(), Vec::new());
    for planned in &plan.devices {
        #[cfg(feature = "virtio")]
        let id = planned.id.as_deref().unwrap_or_default();
        let device: Arc<dyn BusDevice> = match planned.kind {
            DeviceKind::Uart16550 | DeviceKind::Pl011 => {
                let (device, port) = uart(planned, lines)?;
                serial = Some(port);
                device
            }
            DeviceKind::I8042 => {
                let controller = Arc::new(I8042::new(interrupt(planned, lines)?));
                if planned.irq.is_some() {
                    keyboard = Some(controller.clone());
                }
                controller
            }
            DeviceKind::Cmos => Arc::new(Cmos::default()),
            DeviceKind::Pvpanic => Arc::new(Pvpanic),
            DeviceKind::AcpiPower => {
                let power = Arc::new(AcpiPower::new(interrupt(planned, lines)?));
                power_button = Some(power.clone());
                events = Some(Arc::clone(&power));
                power
            }
            DeviceKind::Pl031 => Arc::new(Pl031::default()),
            DeviceKind::GoldfishRtc => Arc::new(GoldfishRtc::default()),
            DeviceKind::Pl061 => {
                let gpio = Arc::new(Pl061::new(interrupt(planned, lines)?));
                power_button = Some(gpio.clone());
                gpio
            }
            DeviceKind::IoApic { pins } => Arc::new(IoApic::new(pins, lines.routes.lines())),
            #[cfg(feature = "virtio")]
            DeviceKind::VirtioMmio(kind) => {
                let device = opened.take(id)?;
                let device = crate::devices::virtio::carry(device, planned, lines, vm, ram)?;
                registry.add(id.to_owned(), kind.name(), device.clone());
                device
            }
            #[cfg(not(feature = "virtio"))]
            DeviceKind::VirtioMmio(_) => continue,
            #[cfg(feature = "pci")]
            DeviceKind::VirtioPci { kind, slot } => {
                if let Some(bus) = &mut pci {
                    let function = bus.add(opened.take(id)?, planned, slot, vm, ram)?;
                    registry.add(id.to_owned(), kind.name(), function);
                }
                continue;
            }
            // They come with the bus, when all of its functions are there; without the feature no
            // configuration asks for them.
            DeviceKind::PciEcam | DeviceKind::PciPorts => continue,
            #[cfg(not(feature = "pci"))]
            DeviceKind::VirtioPci { .. } => continue,
        };
        let device = registry.counted(planned.kind, device);
        let (base, len) = (planned.range.base, planned.range.len);
        match planned.space {
            Space::Mmio => mmio.push(BusEntry { base, len, device }),
            Space::Pio => pio.push(BusEntry { base, len, device }),
        }
    }
    #[cfg(feature = "pci")]
    if let Some(bus) = pci {
        bus.finish(plan, &mut mmio, &mut pio);
    }
    own::create(&opened.own, lines, &mut mmio, &mut pio)?;
    let freeze = |entries| {
        Bus::new(entries).map_err(|error| {
            Error::host("the plan's devices overlap")(std::io::Error::other(error))
        })
    };
    Ok(Devices {
        spaces: IoSpaces {
            mmio: freeze(mmio)?,
            pio: freeze(pio)?,
        },
        serial,
        power_button,
        keyboard,
        generation: Generation::new(plan, lines, events)?,
        registry,
        virtio_console: opened.console,
    })
}

#[cfg(feature = "serial")]
fn uart(planned: &DevicePlan, lines: &Lines<'_>) -> Result<(Arc<dyn BusDevice>, Port), Error> {
    let room = crate::wake::eventfd()?;
    let guest_side = room
        .try_clone()
        .map_err(Error::host("cannot clone an eventfd"))?;
    let interrupt = interrupt(planned, lines)?;
    let output = crate::console::Output::new()?;
    let sink = Box::new(output.ring.clone());
    let port = |receive| Port {
        receive,
        room,
        resize: None,
        output,
    };
    if planned.kind == DeviceKind::Pl011 {
        let uart = Arc::new(devices::Pl011::new(interrupt, guest_side, sink));
        let receiver = Arc::clone(&uart);
        let receive = Box::new(move |bytes: &[u8]| receiver.receive(bytes));
        Ok((uart, port(receive)))
    } else {
        let uart = Arc::new(devices::Uart16550::new(interrupt, guest_side, sink));
        let receiver = Arc::clone(&uart);
        let receive = Box::new(move |bytes: &[u8]| receiver.receive(bytes));
        Ok((uart, port(receive)))
    }
}

#[cfg(not(feature = "serial"))]
fn uart(planned: &DevicePlan, _lines: &Lines<'_>) -> Result<(Arc<dyn BusDevice>, Port), Error> {
    Err(Error::Config {
        field: "serial".into(),
        value: planned.kind.to_string(),
        cause: "this build has no serial console".to_owned(),
        cure: "build with the feature serial".to_owned(),
    })
}
