//! The generic event device (ACPI 6.5, 5.6.9), and the devices whose events it tells of: the power button and the
//! generation ID.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, If, Interrupt, Local, Method, Name, Notify, ONE, OpRegion, OpRegionSpace,
    Package, Path, ResourceTemplate, Store,
};
use arch::{DevicePlan, GenerationId, Space};

use super::table::{Rendered, bytes};

/// The register of events, from the first of the power registers on, and its bits.
const EVENTS: u64 = 3;
const POWER_BUTTON: u8 = 1;
const GENERATION: u8 = 2;
/// What a driver is told: that the button was pressed (5.6.6), that the ID is another one.
const HAPPENED: u8 = 0x80;
/// The names of the devices.
const BUTTON: &str = "PWRB";
const GENERATION_ID: &str = "VGEN";

/// Describes the devices, and the one that tells of their events: its method reads which events there were, which
/// clears them, and passes them on.
pub(super) fn describe(power: &DevicePlan, vmgenid: Option<&GenerationId>, body: &mut Vec<u8>) {
    let Some(gsi) = power.irq else { return };
    Device::new(
        Path::new("_SB_.PWRB"),
        vec![&Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C"))],
    )
    .to_aml_bytes(body);
    let read = Rendered(bytes(&Store::new(&Local(0), &Path::new("EVTS"))));
    let mut events = vec![read, passed_on(POWER_BUTTON, BUTTON)];
    if let Some(vmgenid) = vmgenid {
        generation_id(vmgenid, body);
        events.push(passed_on(GENERATION, GENERATION_ID));
    }
    let space = match power.space {
        Space::Mmio => OpRegionSpace::SystemMemory,
        Space::Pio => OpRegionSpace::SystemIO,
    };
    let interrupt = Interrupt::new(true, true, false, false, gsi);
    let register = power.range.base + EVENTS;
    let method = events.iter().map(|part| part as &dyn Aml).collect();
    Device::new(
        Path::new("_SB_.GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt])),
            &OpRegion::new(Path::new("EVTR"), space, &register, &ONE),
            &Field::new(
                Path::new("EVTR"),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"EVTS", 8)],
            ),
            &Method::new(Path::new("_EVT"), 1, true, method),
        ],
    )
    .to_aml_bytes(body);
}

/// Tells a device's driver, if its bit is in what was read.
fn passed_on(event: u8, device: &str) -> Rendered {
    let mut body = bytes(&And::new(&Local(1), &Local(0), &event));
    If::new(
        &Equal::new(&Local(1), &event),
        vec![&Notify::new(&Path::new(device), &HAPPENED)],
    )
    .to_aml_bytes(&mut body);
    Rendered(body)
}

/// The device by which a driver finds the ID: whatever its `_HID`, its `_CID` says what it is (Microsoft, "Virtual
/// Machine Generation ID").
fn generation_id(vmgenid: &GenerationId, body: &mut Vec<u8>) {
    let base = vmgenid.range.base;
    let (low, high) = (base & u64::from(u32::MAX), base >> 32);
    Device::new(
        Path::new("_SB_.VGEN"),
        vec![
            &Name::new(Path::new("_HID"), &"VMMR0001"),
            &Name::new(Path::new("_CID"), &"VM_Gen_Counter"),
            &Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            &Name::new(Path::new("ADDR"), &Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(body);
}
