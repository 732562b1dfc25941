//! Devices of the embedder's own: where they are, and what keeps them from being there.
//!
//! They are no part of the plan, which the platform makes and tells the guest of: a driver has to know where such a
//! device is, from its kernel command line for instance.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use arch::{AddressRange, ConfigPath, Gsi, MachinePlan, Space};
use devices::state::{DeviceState, StateError};
use devices::{BusDevice, BusEntry, Outcome};
use vmm_sys_util::eventfd::EventFd;

use crate::Error;
use crate::devices::lines::Lines;
use crate::wake::eventfd;

/// The first number that is no port.
const PORTS: u64 = 1 << 16;
const CURE: &str =
    "choose addresses that are free on this machine; `Machine::plan` has those that are not";

/// A device of the embedder's own, and where the guest finds it.
///
/// The device gets every access of the guest's to its range, on the thread of the vCPU, which waits for it; see
/// [`BusDevice`]. It is the same one after a restart of the guest, which it is not told of. The guest is not told of
/// the device: its driver has to know the address.
///
/// The range has to be free: neither RAM nor reserved, no other device's, and outside of the windows in which the
/// guest may place PCI devices. [`MachinePlan`] has all of these. What KVM itself serves never reaches a device: on a
/// machine that is not lean, the ports of a PC's interrupt controllers and of its interval timer.
#[derive(Debug, Clone)]
pub struct OwnDevice {
    name: String,
    space: Space,
    range: AddressRange,
    device: Arc<dyn BusDevice>,
    interrupt: Option<(Gsi, Interrupt)>,
}

impl OwnDevice {
    /// A device with `len` bytes of registers from the guest physical address `base` on. Errors call it `name`.
    pub fn in_memory(
        name: impl Into<String>,
        base: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Self {
        Self::new(
            name.into(),
            Space::Mmio,
            AddressRange::new(base, len),
            device,
        )
    }

    /// A device with `len` ports from `first` on, on an architecture that has ports.
    pub fn at_ports(
        name: impl Into<String>,
        first: u16,
        len: u16,
        device: Arc<dyn BusDevice>,
    ) -> Self {
        let range = AddressRange::new(first.into(), len.into());
        Self::new(name.into(), Space::Pio, range, device)
    }

    fn new(name: String, space: Space, range: AddressRange, device: Arc<dyn BusDevice>) -> Self {
        Self {
            name,
            space,
            range,
            device,
            interrupt: None,
        }
    }

    /// Lets `interrupt` raise the line `gsi` of the machine's interrupt chip, which no other device may have. Lines
    /// are edges. On x86_64 they are the pins of the I/O APIC, on aarch64 the SPIs from 0 on, on riscv64 the
    /// sources of the APLIC.
    #[must_use]
    pub fn with_interrupt(mut self, gsi: Gsi, interrupt: &Interrupt) -> Self {
        self.interrupt = Some((gsi, interrupt.clone()));
        self
    }

    /// Says that nothing of the device goes on in a machine that was saved: a new one takes its place there. Else a machine
    /// that has it is not saved.
    #[must_use]
    pub fn without_state(mut self) -> Self {
        self.device = Arc::new(Stateless(self.device));
        self
    }

    /// What is wrong with the `number`th device of a list.
    fn refuse(&self, number: usize, cause: String, cure: &str) -> Error {
        Error::Config {
            field: ConfigPath::from("device").item(number),
            value: self.name.clone(),
            cause,
            cure: cure.to_owned(),
        }
    }
}

/// A device without a state.
#[derive(Debug)]
struct Stateless(Arc<dyn BusDevice>);

impl BusDevice for Stateless {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Outcome {
        self.0.write(offset, data)
    }

    fn save(&self) -> Option<DeviceState> {
        Some(DeviceState::Stateless {})
    }

    fn load(&self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::Stateless {} => Ok(()),
            _ => Err(StateError::Foreign),
        }
    }
}

/// The place, as messages have it.
struct Place(Space, AddressRange);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(space, range) = self;
        let last = range.end().saturating_sub(1);
        match space {
            Space::Mmio => write!(f, "{:#x}-{last:#x}", range.base),
            Space::Pio => write!(f, "the ports {:#x}-{last:#x}", range.base),
        }
    }
}

/// An interrupt line of a machine, for a device of the embedder's own.
///
/// It is connected when the machine is built, and again at every restart of the guest. An edge that is raised
/// meanwhile is lost, as one is that the guest has masked.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<Mutex<Option<EventFd>>>);

impl Interrupt {
    /// A line that is connected to nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises an edge, from any thread.
    pub fn raise(&self) {
        if let Some(line) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // A full counter means that KVM has not come to the edges before.
            let _ = line.write(1);
        }
    }

    fn connect(&self, line: EventFd) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(line);
    }
}

/// Finds out whether the places of all devices are free.
pub(crate) fn check(own: &[OwnDevice], plan: &MachinePlan) -> Result<(), Error> {
    for (number, device) in own.iter().enumerate() {
        let refuse = |cause, cure| Err(device.refuse(number, cause, cure));
        let (range, place) = (device.range, Place(device.space, device.range));
        let end = range.base.checked_add(range.len).filter(|_| range.len > 0);
        let limit = match device.space {
            Space::Mmio => u64::MAX,
            Space::Pio => PORTS,
        };
        if end.is_none_or(|end| end > limit) {
            let cause = format!(
                "its {:#x} bytes from {:#x} on are none, or leave the address space",
                range.len, range.base
            );
            return refuse(cause, CURE);
        }
        if device.space == Space::Pio && !has_ports(plan) {
            return refuse(
                format!("a machine of {} has no ports", plan.arch),
                "give it addresses in memory",
            );
        }
        if let Some((what, other)) =
            taken(plan, device.space).find(|(_, other)| other.overlaps(&range))
        {
            let cause = format!(
                "it is to have {place}, and {} are {what}",
                Place(device.space, other)
            );
            return refuse(cause, CURE);
        }
        let before = own.iter().take(number);
        let same = |other: &&OwnDevice| other.space == device.space && other.range.overlaps(&range);
        if let Some(other) = before.clone().find(same) {
            let cause = format!(
                "it is to have {place}, and {} of {} are there",
                Place(other.space, other.range),
                other.name
            );
            return refuse(cause, CURE);
        }
        let Some((gsi, _)) = device.interrupt else {
            continue;
        };
        let others = plan.devices.iter().filter(|other| other.irq == Some(gsi));
        let of_id = plan.vmgenid.filter(|id| id.irq == Some(gsi));
        let of_id = of_id.map(|_| "the VM generation ID".to_owned());
        let others = others.map(|other| other.kind.to_string()).chain(of_id);
        let own = before.filter(|other| {
            other
                .interrupt
                .as_ref()
                .is_some_and(|(other, _)| *other == gsi)
        });
        if let Some(other) = others.chain(own.map(|other| other.name.clone())).next() {
            let cause = format!("it is to have the interrupt line {gsi}, which {other} has");
            return refuse(cause, "give each device a line of its own");
        }
    }
    Ok(())
}

/// Platforms with ports have devices at them.
fn has_ports(plan: &MachinePlan) -> bool {
    plan.devices.iter().any(|device| device.space == Space::Pio)
}

/// What has which addresses.
fn taken(plan: &MachinePlan, space: Space) -> impl Iterator<Item = (String, AddressRange)> {
    let devices = plan
        .devices
        .iter()
        .filter(move |device| device.space == space);
    let devices = devices.map(|device| (format!("those of the {}", device.kind), device.range));
    let windows = plan
        .pci
        .iter()
        .flat_map(|pci| [Some(pci.window32), pci.window64]);
    let windows = windows
        .flatten()
        .map(|range| ("for BARs of PCI devices".to_owned(), range));
    let reserved = plan.reserved.iter();
    let reserved =
        reserved.map(|reserved| (format!("reserved: {}", reserved.name), reserved.range));
    let ram = plan.ram.iter().map(|range| ("RAM".to_owned(), *range));
    let memory = reserved.chain(ram).chain(windows);
    devices.chain(memory.filter(move |_| space == Space::Mmio))
}

/// Connects the devices' interrupts and gives their entries on the buses.
pub(crate) fn create(
    own: &[OwnDevice],
    lines: &Lines<'_>,
    mmio: &mut Vec<BusEntry>,
    pio: &mut Vec<BusEntry>,
) -> Result<(), Error> {
    for (number, device) in own.iter().enumerate() {
        if let Some((gsi, interrupt)) = &device.interrupt {
            let Range { start, end } = lines.range;
            if !(start..end).contains(gsi) {
                let cause = format!(
                    "it is to have the interrupt line {gsi}, and there are {start} to {}",
                    end.saturating_sub(1)
                );
                return Err(device.refuse(number, cause, "choose one of these"));
            }
            let line = eventfd()?;
            (lines.connect)(&line, *gsi)?;
            interrupt.connect(line);
        }
        let entry = BusEntry {
            base: device.range.base,
            len: device.range.len,
            device: Arc::clone(&device.device),
        };
        match device.space {
            Space::Mmio => mmio.push(entry),
            Space::Pio => pio.push(entry),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arch::{DeviceKind, DevicePlan, PciPlan, Reserved};
    use devices::Pvpanic;

    use super::*;

    fn plan(with_ports: bool) -> MachinePlan {
        let range = AddressRange::new;
        let device = |kind, space, range, irq| DevicePlan {
            id: None,
            messages: None,
            kind,
            space,
            range,
            irq,
        };
        let uart = if with_ports {
            device(DeviceKind::Uart16550, Space::Pio, range(0x3f8, 8), Some(4))
        } else {
            device(
                DeviceKind::Pl011,
                Space::Mmio,
                range(0x900_0000, 0x1000),
                Some(4),
            )
        };
        MachinePlan {
            arch: "none".into(),
            ram: vec![range(0x4000_0000, 0x1000_0000)],
            reserved: vec![Reserved {
                name: "interrupt chip".into(),
                range: range(0x800_0000, 0x1_0000),
            }],
            kernel_window: range(0x4000_0000, 0x1000_0000),
            mmio_window: range(0x900_0000, 0x100_0000),
            devices: vec![uart],
            pci: Some(PciPlan {
                ecam: range(0x3000_0000, 0x10_0000),
                window32: range(0x1000_0000, 0x2000_0000),
                window64: Some(range(1 << 40, 1 << 30)),
                first_msi_gsi: 64,
            }),
            vcpus: 1,
            lean: None,
            cmdline: String::new(),
            vmgenid: None,
            remarks: Vec::new(),
        }
    }

    fn memory(base: u64, len: u64) -> OwnDevice {
        OwnDevice::in_memory("own", base, len, Arc::new(Pvpanic))
    }

    fn ports(first: u16, len: u16) -> OwnDevice {
        OwnDevice::at_ports("own", first, len, Arc::new(Pvpanic))
    }

    #[test]
    fn a_device_of_the_embedder_has_a_free_place_or_none() {
        let line = Interrupt::new();
        let (with, without) = (plan(true), plan(false));
        for (plan, own, said) in [
            (&with, vec![memory(0x5000_0000, 0x1000)], None),
            (&with, vec![memory(0x3fff_f000, 0x1001)], Some("RAM")),
            (
                &with,
                vec![memory(0x800_f000, 0x1000)],
                Some("reserved: interrupt chip"),
            ),
            (&without, vec![memory(0x900_0800, 4)], Some("PL011")),
            (&with, vec![memory(0x900_0800, 4)], None),
            (
                &with,
                vec![memory(0x2fff_fff0, 4)],
                Some("BARs of PCI devices"),
            ),
            (&with, vec![memory(1 << 40, 4)], Some("BARs of PCI devices")),
            (
                &with,
                vec![memory(u64::MAX, 2)],
                Some("leave the address space"),
            ),
            (&with, vec![memory(0x5000_0000, 0)], Some("are none")),
            (
                &with,
                vec![memory(0x5000_0000, 8), memory(0x5000_0007, 1)],
                Some("of own are there"),
            ),
            (&with, vec![ports(0x500, 4), memory(0x500, 4)], None),
            (&with, vec![ports(0x3ff, 1)], Some("16550A")),
            (&with, vec![ports(0xffff, 1)], None),
            (
                &with,
                vec![ports(0xffff, 2)],
                Some("leave the address space"),
            ),
            (&without, vec![ports(0x500, 4)], Some("has no ports")),
            (
                &with,
                vec![ports(0x500, 4).with_interrupt(4, &line)],
                Some("16550A"),
            ),
            (
                &with,
                vec![
                    ports(0x500, 4).with_interrupt(5, &line),
                    ports(0x504, 4).with_interrupt(5, &line),
                ],
                Some("interrupt line 5, which own has"),
            ),
        ] {
            let result = check(&own, plan).map_err(|error| error.to_string());
            match said {
                None => assert_eq!(result, Ok(()), "{own:?}"),
                Some(said) => {
                    let error = result.unwrap_err();
                    assert!(error.contains(said), "{own:?}: {error}");
                    assert!(error.starts_with("device["), "{error}");
                }
            }
        }
    }

    #[test]
    fn an_edge_before_the_machine_is_there_is_lost() {
        let line = Interrupt::new();
        line.raise();
        let event = eventfd().unwrap();
        line.connect(event.try_clone().unwrap());
        assert!(event.read().is_err());
        line.raise();
        line.raise();
        assert_eq!(event.read().unwrap(), 2);
    }
}
