//! What all tables and descriptions of devices are made with.

use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use arch::{DeviceKind, DevicePlan};

pub(super) const OEM_ID: [u8; 6] = *b"VMMREF";
pub(super) const OEM_TABLE_ID: [u8; 8] = *b"VMMREFER";
pub(super) const OEM_REVISION: u32 = 1;
/// Length of the header that every table starts with.
const HEADER: u32 = 36;

/// AML that was rendered already.
pub(super) struct Rendered(pub(super) Vec<u8>);

impl Aml for Rendered {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

pub(super) fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

/// A table with a standard header.
pub(super) fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(
        signature,
        HEADER,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(body);
    table.as_slice().to_vec()
}

pub(super) fn find(devices: &[DevicePlan], kind: DeviceKind) -> Option<&DevicePlan> {
    devices.iter().find(|device| device.kind == kind)
}
