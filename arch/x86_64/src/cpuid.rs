//! STUB: replaced by the ACPI helper.
use serde::{Deserialize, Serialize};
/// A leaf.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidEntry {
    pub function: u32,
    pub index: u32,
    pub flags: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}
/// Stub.
#[must_use]
pub fn vcpu_leaves(host: &[CpuidEntry], _: u32, _: u32) -> Vec<CpuidEntry> {
    host.to_vec()
}
