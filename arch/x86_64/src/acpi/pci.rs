//! The PCI bus (PCI Firmware Specification 3.3): where its configuration space is, what its BARs
//! may use, and what the guest may do with it.

use acpi_tables::Aml;
use acpi_tables::aml::{
    self, AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else,
    Equal, If, Local, Memory32Fixed, Method, Name, NotEqual, Or, Path, ResourceTemplate, Return,
    Store, Uuid,
};
use acpi_tables::mcfg::MCFG;
use arch::{BootError, DeviceKind, DevicePlan, PciPlan};

use super::table::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, Rendered, bytes, find};

/// The interface of `_OSC` for PCI host bridges (4.5.1).
const OSC_UUID: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
/// Its revision.
const OSC_REVISION: u8 = 1;
/// What `_OSC` answers in the first word: unknown interface, unknown revision, less was granted
/// than asked for.
const UNKNOWN_UUID: u8 = 1 << 2;
const UNKNOWN_REVISION: u8 = 1 << 3;
const MASKED: u8 = 1 << 4;
/// Control of the PCI Express capability: the one thing on offer. There is no hot plug, no error
/// reporting and no power management to control.
const EXPRESS_CAPABILITY: u8 = 1 << 4;

/// The table that says where the configuration space of the bus is.
pub(super) fn mcfg(pci: &PciPlan) -> Vec<u8> {
    let mut table = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.add_ecam(pci.ecam.base, 0, 0, 0);
    bytes(&table)
}

/// The host bridge, and beside it the device that reserves the configuration space: what a bridge
/// claims for itself it must not pass on to its bus.
pub(super) fn describe(
    pci: &PciPlan,
    devices: &[DevicePlan],
    body: &mut Vec<u8>,
) -> Result<(), BootError> {
    let ecam = Memory32Fixed::new(true, word(pci.ecam.base)?, word(pci.ecam.len)?);
    Device::new(
        Path::new("_SB_.MBRD"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ecam])),
        ],
    )
    .to_aml_bytes(body);
    Device::new(
        Path::new("_SB_.PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(Path::new("_SEG"), &aml::ZERO),
            &Name::new(Path::new("_BBN"), &aml::ZERO),
            // Devices reach memory through the caches.
            &Name::new(Path::new("_CCA"), &aml::ONE),
            &Name::new(Path::new("_CRS"), &Rendered(resources(pci, devices)?)),
            &Osc,
        ],
    )
    .to_aml_bytes(body);
    Ok(())
}

/// Bus 0, the configuration ports, and the windows for BARs.
fn resources(pci: &PciPlan, devices: &[DevicePlan]) -> Result<Vec<u8>, BootError> {
    let bus = AddressSpace::new_bus_number(0u16, 0);
    let ports = find(devices, DeviceKind::PciPorts)
        .map(|ports| {
            let port = u16::try_from(ports.range.base).map_err(misfit)?;
            let len = u8::try_from(ports.range.len).map_err(misfit)?;
            Ok(aml::IO::new(port, port, 1, len))
        })
        .transpose()?;
    let (first, last) = (pci.window32.base, pci.window32.end().saturating_sub(1));
    let low = memory(word(first)?, word(last)?);
    let high = pci
        .window64
        .map(|window| memory(window.base, window.end().saturating_sub(1)));
    let mut resources: Vec<&dyn Aml> = vec![&bus, &low];
    resources.extend(ports.iter().map(|ports| ports as &dyn Aml));
    resources.extend(high.iter().map(|high| high as &dyn Aml));
    Ok(bytes(&ResourceTemplate::new(resources)))
}

fn memory<T: Default>(first: T, last: T) -> AddressSpace<T> {
    AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None)
}

fn word(value: u64) -> Result<u32, BootError> {
    u32::try_from(value).map_err(misfit)
}

fn misfit(_: std::num::TryFromIntError) -> BootError {
    BootError::Kernel("the PCI bus is planned where no table can name it".to_owned())
}

/// `_OSC`: the guest says what it supports and asks for control of features; the answer leaves it
/// those that are on offer. Without this method Linux switches off what it cannot ask for.
struct Osc;

impl Aml for Osc {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let status = Path::new("CDW1");
        let control = Path::new("CDW3");
        let (uuid, revision, capabilities) = (Arg(0), Arg(1), Arg(3));
        let granted = Local(0);
        let report = |flag| Or::new(&status, &status, flag);
        Method::new(
            Path::new("_OSC"),
            4,
            true,
            vec![
                &CreateDWordField::new(&status, &capabilities, &aml::ZERO),
                &If::new(
                    &Equal::new(&uuid, &Uuid::new(OSC_UUID)),
                    vec![
                        &CreateDWordField::new(&control, &capabilities, &8u8),
                        &And::new(&granted, &control, &EXPRESS_CAPABILITY),
                        &If::new(
                            &NotEqual::new(&revision, &OSC_REVISION),
                            vec![&report(&UNKNOWN_REVISION)],
                        ),
                        &If::new(&NotEqual::new(&granted, &control), vec![&report(&MASKED)]),
                        &Store::new(&control, &granted),
                    ],
                ),
                &Else::new(vec![&report(&UNKNOWN_UUID)]),
                &Return::new(&capabilities),
            ],
        )
        .to_aml_bytes(sink);
    }
}
