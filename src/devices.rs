//! Makes the planned devices and puts them on the bus.

use std::sync::Arc;

use arch::{DeviceKind, DevicePlan, GuestRam, KvmError, Space, VirtioKind};
use devices::{AcpiPower, Bus, BusDevice, BusEntry, Cmos, I8042, OutputRing, Pl031};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::console::SerialPort;
use crate::dispatch::IoSpaces;
use crate::{Error, VmConfig};

/// The devices of a VM.
#[derive(Debug)]
pub(crate) struct Devices {
    pub(crate) spaces: IoSpaces,
    pub(crate) serial: Option<SerialPort>,
}

/// Creates every device of the plan and wires its interrupt.
pub(crate) fn create(
    plan: &[DevicePlan],
    config: &VmConfig,
    vm: &Arc<VmFd>,
    ram: &GuestRam,
    output: &OutputRing,
) -> Result<Devices, Error> {
    let mut serial = None;
    let mut disks = config.blk.iter();
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
            DeviceKind::VirtioMmio(VirtioKind::Block) => match disks.next() {
                Some(disk) => virtio::carry(virtio::disk(disk)?, planned, vm, ram)?,
                // The plan comes from the same configuration.
                None => continue,
            },
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

/// Finds out whether every disk can be opened.
pub(crate) fn check_disks(config: &VmConfig) -> Result<(), Error> {
    config.blk.iter().try_for_each(virtio::check)
}

/// An eventfd that raises the planned interrupt of a device.
#[cfg_attr(not(any(feature = "serial", feature = "virtio-blk")), allow(dead_code))]
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

#[cfg(feature = "virtio-blk")]
mod virtio {
    use devices::virtio::{Block, BlockError, VirtioDevice, VirtioMmio};
    use kvm_ioctls::IoEventAddress;

    use super::*;
    use devices::config::BlkConfig;

    fn refused(config: &BlkConfig) -> impl Fn(BlockError) -> Error {
        |error| Error::Config {
            field: "blk",
            value: config.path.display().to_string(),
            cause: error.to_string(),
            cure: "name a raw image or a block device that no other VM writes to, or add ,ro",
        }
    }

    /// Finds out whether a disk can be opened.
    pub(super) fn check(config: &BlkConfig) -> Result<(), Error> {
        Block::check(config).map_err(refused(config))
    }

    /// Opens a disk.
    pub(super) fn disk(config: &BlkConfig) -> Result<Box<dyn VirtioDevice>, Error> {
        let disk = Block::open(config).map_err(refused(config))?;
        Ok(Box::new(disk))
    }

    /// Puts a device behind the transport that was planned for it.
    pub(super) fn carry(
        device: Box<dyn VirtioDevice>,
        planned: &DevicePlan,
        vm: &Arc<VmFd>,
        ram: &GuestRam,
    ) -> Result<Arc<dyn BusDevice>, Error> {
        let line = interrupt(planned, vm)?;
        let address = IoEventAddress::Mmio(planned.range.base + VirtioMmio::NOTIFY);
        let vm = Arc::clone(vm);
        let connect = Box::new(move |queue: u16, event: &EventFd, on| {
            let queue = u32::from(queue);
            let result = if on {
                vm.register_ioevent(event, &address, queue)
            } else {
                vm.unregister_ioevent(event, &address, queue)
            };
            result.map_err(std::io::Error::from)
        });
        let transport = VirtioMmio::new(device, ram.clone(), line, connect)
            .map_err(Error::host("cannot make a virtio device"))?;
        Ok(Arc::new(transport))
    }
}

#[cfg(not(feature = "virtio-blk"))]
mod virtio {
    use std::convert::Infallible;

    use super::*;
    use devices::config::BlkConfig;

    pub(super) fn check(config: &BlkConfig) -> Result<(), Error> {
        disk(config).map(drop)
    }

    pub(super) fn disk(config: &BlkConfig) -> Result<Infallible, Error> {
        Err(Error::Config {
            field: "blk",
            value: config.path.display().to_string(),
            cause: "this build has no disks".to_owned(),
            cure: "build with the feature virtio-blk",
        })
    }

    pub(super) fn carry(
        device: Infallible,
        _: &DevicePlan,
        _: &Arc<VmFd>,
        _: &GuestRam,
    ) -> Result<Arc<dyn BusDevice>, Error> {
        match device {}
    }
}
