//! ACPI tables (ACPI Specification 6.5): root pointer, XSDT, FADT, MADT, DSDT; MCFG with a PCI bus.
//!
//! Everything comes from the planned devices and the number of vCPUs. The machine is
//! hardware-reduced: no PM timer, no SCI, no legacy PIC or PIT in the guest's view. Power-off and
//! reset go through the registers of [`DeviceKind::AcpiPower`].

use acpi_tables::aml::{self, Device, EISAName, Interrupt, Name, Package, Path, ResourceTemplate};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use arch::{BootError, DeviceKind, DevicePlan, MachinePlan, Space};

use self::table::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, Rendered, bytes, find, table};
use crate::irqchip::IoApic;
use crate::map;

mod events;
mod keyboard;
mod pci;
mod table;

/// IAPC_BOOT_ARCH: a keyboard controller (bit 1), where it has a keyboard: a driver would only wait for one; do not
/// probe for VGA (bit 2); no CMOS clock (bit 5).
const KEYBOARD: u16 = 1 << 1;
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

/// Value of the reset register that resets.
const RESET_VALUE: u8 = 1;
/// Sleep type of S5, soft off.
const S5_TYPE: u8 = 5;

/// MADT structure types (5.2.12).
const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const LOCAL_APIC_NMI: u8 = 4;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 10;
/// Local APIC flag: the processor may be used.
const ENABLED: u32 = 1;
/// The first APIC id that needs an x2APIC: 255 is the broadcast id of the xAPIC.
const FIRST_X2APIC: u32 = 255;
/// LINT1 is the NMI pin.
const LINT1: u8 = 1;

/// The tables, ready for their places in guest memory.
#[derive(Debug)]
pub struct AcpiTables {
    /// The root pointer, for [`map::RSDP`].
    pub rsdp: Vec<u8>,
    /// All other tables, for [`map::ACPI_TABLES`].
    pub tables: Vec<u8>,
}

/// Builds the tables.
///
/// # Errors
/// [`BootError::TooLarge`] when they do not fit their area.
pub fn build(plan: &MachinePlan, chip: &IoApic) -> Result<AcpiTables, BootError> {
    let (devices, vcpus) = (&plan.devices, plan.vcpus);
    let mut tables = Vec::new();
    let dsdt = append(&mut tables, &dsdt(plan)?);
    let fadt = append(&mut tables, &fadt(devices, dsdt));
    let madt = append(&mut tables, &madt(vcpus, chip)?);
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if let Some(pci) = &plan.pci {
        xsdt.add_entry(append(&mut tables, &pci::mcfg(pci)));
    }
    let xsdt = append(&mut tables, &bytes(&xsdt));
    let size = tables.len() as u64;
    if size > map::ACPI_TABLES.len {
        return Err(too_large(size));
    }
    Ok(AcpiTables {
        rsdp: bytes(&Rsdp::new(OEM_ID, xsdt)),
        tables,
    })
}

fn too_large(size: u64) -> BootError {
    BootError::TooLarge {
        what: "the ACPI tables",
        size,
        cause: format!(
            "{} bytes are set aside for them; use fewer vCPUs",
            map::ACPI_TABLES.len
        ),
    }
}

/// Appends a table, aligned to 8 bytes, and gives the address it will have.
fn append(tables: &mut Vec<u8>, table: &[u8]) -> u64 {
    tables.resize(tables.len().next_multiple_of(8), 0);
    let address = map::ACPI_TABLES.base + tables.len() as u64;
    tables.extend_from_slice(table);
    address
}

/// A one-byte register of a device.
fn register(device: &DevicePlan, offset: u64) -> GAS {
    let space = match device.space {
        Space::Mmio => AddressSpace::SystemMemory,
        Space::Pio => AddressSpace::SystemIo,
    };
    GAS::new(
        space,
        8,
        0,
        AccessSize::ByteAccess,
        device.range.base + offset,
    )
}

fn fadt(devices: &[DevicePlan], dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION).dsdt_64(dsdt);
    // A set button flag means: not a fixed-hardware button.
    for flag in [
        Flags::HwReducedAcpi,
        Flags::PwrButton,
        Flags::SlpButton,
        Flags::Headless,
    ] {
        fadt = fadt.flag(flag);
    }
    let mut boot_arch = NO_VGA;
    if find(devices, DeviceKind::Cmos).is_none() {
        boot_arch |= NO_CMOS_CLOCK;
    }
    if keyboard::find(devices).is_some() {
        boot_arch |= KEYBOARD;
    }
    fadt.iapc_boot_arch = boot_arch.into();
    if let Some(power) = find(devices, DeviceKind::AcpiPower) {
        fadt.sleep_control_reg = register(power, 0);
        fadt.sleep_status_reg = register(power, 1);
        fadt.reset_reg = register(power, 2);
        fadt.reset_value = RESET_VALUE;
        fadt = fadt.flag(Flags::ResetRegSup);
    }
    bytes(&fadt.finalize())
}

fn madt(vcpus: u32, chip: &IoApic) -> Result<Vec<u8>, BootError> {
    let io_apic = u32::try_from(chip.address).map_err(|_| too_large(chip.address))?;
    let mut body = map::LAPIC_ADDRESS.to_le_bytes().to_vec();
    // Flags: no PCAT_COMPAT, the machine has no legacy PIC to mask.
    body.extend(0u32.to_le_bytes());
    for id in 0..vcpus {
        match u8::try_from(id) {
            Ok(apic_id) if id < FIRST_X2APIC => {
                body.extend([LOCAL_APIC, 8, apic_id, apic_id]);
                body.extend(ENABLED.to_le_bytes());
            }
            _ => {
                body.extend([LOCAL_X2APIC, 16, 0, 0]);
                body.extend([id, ENABLED, id].into_iter().flat_map(u32::to_le_bytes));
            }
        }
    }
    body.extend([IO_APIC, 12, chip.id, 0]);
    body.extend([io_apic, 0].into_iter().flat_map(u32::to_le_bytes));
    // All processors, polarity and trigger as the bus has them.
    body.extend([LOCAL_APIC_NMI, 6, 0xff, 0, 0, LINT1]);
    if vcpus > FIRST_X2APIC {
        body.extend([
            LOCAL_X2APIC_NMI,
            12,
            0,
            0,
            0xff,
            0xff,
            0xff,
            0xff,
            LINT1,
            0,
            0,
            0,
        ]);
    }
    Ok(table(*b"APIC", 5, &body))
}

fn dsdt(plan: &MachinePlan) -> Result<Vec<u8>, BootError> {
    let devices = &plan.devices;
    let mut body = Vec::new();
    Name::new(
        Path::new("_S5_"),
        &Package::new(vec![&S5_TYPE, &aml::ZERO, &aml::ZERO, &aml::ZERO]),
    )
    .to_aml_bytes(&mut body);
    Cpus(plan.vcpus).to_aml_bytes(&mut body);
    for (name, hid, kind) in [
        ("COM", "PNP0501", DeviceKind::Uart16550),
        ("RTC", "PNP0B00", DeviceKind::Cmos),
        // Whoever is compatible with QEMU's device has this id.
        ("PVP", "QEMU0001", DeviceKind::Pvpanic),
    ] {
        let found = devices
            .iter()
            .filter(|device| device.kind == kind && device.space == Space::Pio);
        for (uid, device) in (0u8..).zip(found) {
            let path = format!("_SB_.{name}{}", uid + 1);
            port_device(&path, hid, uid, device)?.to_aml_bytes(&mut body);
        }
    }
    if let Some((controller, irq)) = keyboard::find(devices) {
        keyboard::describe(controller, irq, &mut body)?;
    }
    if let Some(power) = find(devices, DeviceKind::AcpiPower) {
        events::describe(power, plan.vmgenid.as_ref(), &mut body);
    }
    let virtio = devices
        .iter()
        .filter(|device| matches!(device.kind, DeviceKind::VirtioMmio(_)));
    for (uid, device) in (0u8..).zip(virtio) {
        virtio_device(uid, device)?.to_aml_bytes(&mut body);
    }
    if let Some(pci) = &plan.pci {
        pci::describe(pci, devices, &mut body)?;
    }
    Ok(table(*b"DSDT", 2, &body))
}

/// A device with its ports and its interrupt, an edge.
fn port_device(
    path: &str,
    hid: &'static str,
    uid: u8,
    device: &DevicePlan,
) -> Result<Rendered, BootError> {
    let beyond = |_| BootError::Kernel(format!("{path} lies outside the port space"));
    let base = u16::try_from(device.range.base).map_err(beyond)?;
    let len = u8::try_from(device.range.len).map_err(beyond)?;
    let ports = aml::IO::new(base, base, 1, len);
    let interrupt = device
        .irq
        .map(|gsi| Interrupt::new(true, true, false, false, gsi));
    let mut resources: Vec<&dyn Aml> = vec![&ports];
    if let Some(interrupt) = &interrupt {
        resources.push(interrupt);
    }
    // Seven characters fit a number; others are a text.
    let number = (hid.len() == 7).then(|| EISAName::new(hid));
    let hid: &dyn Aml = match &number {
        Some(number) => number,
        None => &hid,
    };
    Ok(Rendered(bytes(&Device::new(
        Path::new(path),
        vec![
            &Name::new(Path::new("_HID"), hid),
            &Name::new(Path::new("_UID"), &uid),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
        ],
    ))))
}

/// A virtio device behind the MMIO transport. Linux knows the id LNRO0005 for it.
fn virtio_device(uid: u8, device: &DevicePlan) -> Result<Rendered, BootError> {
    let beyond = |_| BootError::Kernel("a virtio device lies above 4 GiB".to_owned());
    let base = u32::try_from(device.range.base).map_err(beyond)?;
    let len = u32::try_from(device.range.len).map_err(beyond)?;
    let registers = aml::Memory32Fixed::new(true, base, len);
    let interrupt = device
        .irq
        .map(|gsi| Interrupt::new(true, true, false, false, gsi));
    let mut resources: Vec<&dyn Aml> = vec![&registers];
    if let Some(interrupt) = &interrupt {
        resources.push(interrupt);
    }
    Ok(Rendered(bytes(&Device::new(
        Path::new(&format!("_SB_.V{uid:03X}")),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &uid),
            // Its accesses to memory go through the caches.
            &Name::new(Path::new("_CCA"), &aml::ONE),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
        ],
    ))))
}

/// The processors, each named by the UID that its MADT entry has.
struct Cpus(u32);

impl Aml for Cpus {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let processors: Vec<_> = (0..self.0)
            .map(|id| {
                Rendered(bytes(&Device::new(
                    Path::new(&format!("C{id:03X}")),
                    vec![
                        &Name::new(Path::new("_HID"), &"ACPI0007"),
                        &Name::new(Path::new("_UID"), &id),
                    ],
                )))
            })
            .collect();
        let hid = Name::new(Path::new("_HID"), &"ACPI0010");
        let cid = Name::new(Path::new("_CID"), &EISAName::new("PNP0A05"));
        let mut children: Vec<&dyn Aml> = vec![&hid, &cid];
        children.extend(processors.iter().map(|processor| processor as &dyn Aml));
        Device::new(Path::new("_SB_.CPUS"), children).to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests;
