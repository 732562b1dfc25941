//! STUB: replaced by the ACPI helper.
use crate::irqchip::IoApic;
use arch::BootError;
/// Stub.
///
/// # Errors
/// Never.
pub fn build(_: u32, _: &IoApic) -> Result<Option<Vec<u8>>, BootError> {
    Ok(None)
}
