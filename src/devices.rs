//! Makes the planned devices and puts them on the bus.

use std::sync::Arc;

use arch::{DeviceKind, DevicePlan, KvmError, Space};
use devices::{AcpiPower, Bus, BusDevice, BusEntry, Cmos, I8042, OutputRing, Pl031};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Error;
use crate::console::SerialPort;
use crate::dispatch::IoSpaces;

/// The devices of a VM.
#[derive(Debug)]
pub(crate) struct Devices {
    pub(crate) spaces: IoSpaces,
    pub(crate) serial: Option<SerialPort>,
}

/// Creates every device of the plan and wires its interrupt.
pub(crate) fn create(
    plan: &[DevicePlan],
    vm: &VmFd,
    output: &OutputRing,
) -> Result<Devices, Error> {
    let mut serial = None;
    let (mut mmio, mut pio) = (Vec::new(), Vec::new());
    for planned in plan {
        let device: Arc<dyn BusDevice> = match planned.kind {
            DeviceKind::Uart16550 | DeviceKind::Pl011 => {
                let (device, port) = uart(planned, vm, output)?;
                serial = Some(port);
                device
            }
            DeviceKind::I8042 => Arc::new(I8042::default()),
            DeviceKind::Cmos => Arc::new(Cmos::default()),
            DeviceKind::AcpiPower => Arc::new(AcpiPower),
            DeviceKind::Pl031 => Arc::new(Pl031::default()),
        };
        let (base, len) = (planned.range.base, planned.range.len);
        match planned.space {
            Space::Mmio => mmio.push(BusEntry { base, len, device }),
            Space::Pio => pio.push(BusEntry { base, len, device }),
        }
    }
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
    })
}

/// An eventfd that raises the planned interrupt of a device.
#[cfg_attr(not(feature = "serial"), allow(dead_code))]
fn interrupt(planned: &DevicePlan, vm: &VmFd) -> Result<EventFd, Error> {
    let event = eventfd()?;
    if let Some(gsi) = planned.irq {
        vm.register_irqfd(&event, gsi)
            .map_err(KvmError::of("KVM_IRQFD"))?;
    }
    Ok(event)
}

pub(crate) fn eventfd() -> Result<EventFd, Error> {
    EventFd::new(EFD_NONBLOCK).map_err(Error::host("cannot create an eventfd"))
}

#[cfg(feature = "serial")]
fn uart(
    planned: &DevicePlan,
    vm: &VmFd,
    output: &OutputRing,
) -> Result<(Arc<dyn BusDevice>, SerialPort), Error> {
    let room = eventfd()?;
    let guest_side = room
        .try_clone()
        .map_err(Error::host("cannot clone an eventfd"))?;
    let interrupt = interrupt(planned, vm)?;
    let output = Box::new(output.clone());
    if planned.kind == DeviceKind::Pl011 {
        let uart = Arc::new(devices::Pl011::new(interrupt, guest_side, output));
        let receiver = Arc::clone(&uart);
        let receive = Box::new(move |bytes: &[u8]| receiver.receive(bytes));
        Ok((uart, SerialPort { receive, room }))
    } else {
        let uart = Arc::new(devices::Uart16550::new(interrupt, guest_side, output));
        let receiver = Arc::clone(&uart);
        let receive = Box::new(move |bytes: &[u8]| receiver.receive(bytes));
        Ok((uart, SerialPort { receive, room }))
    }
}

#[cfg(not(feature = "serial"))]
fn uart(
    planned: &DevicePlan,
    _vm: &VmFd,
    _output: &OutputRing,
) -> Result<(Arc<dyn BusDevice>, SerialPort), Error> {
    Err(Error::Config {
        field: "serial",
        value: format!("{:?}", planned.kind),
        cause: "this build has no serial console".to_owned(),
        cure: "build with the feature serial",
    })
}
