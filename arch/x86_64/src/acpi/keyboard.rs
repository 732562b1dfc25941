//! The keyboard behind the i8042 controller, which is told of where it has an interrupt.

use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Name, Path, ResourceTemplate};
use arch::{BootError, DeviceKind, DevicePlan, Gsi};

use super::table;

/// The command port, from the data port on.
const COMMAND_PORT: u16 = 4;

/// The controller and the interrupt of its keyboard, if it has one.
pub(super) fn find(devices: &[DevicePlan]) -> Option<(&DevicePlan, Gsi)> {
    let controller = table::find(devices, DeviceKind::I8042)?;
    Some((controller, controller.irq?))
}

/// Describes it: a driver goes by the order of the two ports.
pub(super) fn describe(
    controller: &DevicePlan,
    irq: Gsi,
    body: &mut Vec<u8>,
) -> Result<(), BootError> {
    let beyond = |_| BootError::Kernel("the keyboard lies outside the port space".to_owned());
    let data = u16::try_from(controller.range.base).map_err(beyond)?;
    let command = data.saturating_add(COMMAND_PORT);
    let port = |port| IO::new(port, port, 1, 1);
    let interrupt = Interrupt::new(true, true, false, false, irq);
    Device::new(
        Path::new("_SB_.KBD_"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0303")),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&port(data), &port(command), &interrupt]),
            ),
        ],
    )
    .to_aml_bytes(body);
    Ok(())
}
