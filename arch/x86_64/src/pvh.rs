//! `hvm_start_info` of the PVH boot protocol (Xen docs/misc/pvh.pandoc, public header
//! xen/arch-x86/hvm/start_info.h).
//!
//! One page holds the structure, then the module list, then the memory map.

use arch::{AddressRange, BootError, GuestRam, Placed};

use crate::e820::e820;
use crate::handover::{Handover, write};
use crate::map::{PVH_START_INFO, RSDP};

/// XEN_HVM_START_MAGIC_VALUE.
const MAGIC: u32 = 0x336E_C578;
/// The version that has a memory map.
const VERSION: u32 = 1;
const START_INFO_SIZE: usize = 56;
const MODULE_SIZE: usize = 32;
const MODULES: u64 = PVH_START_INFO.base + START_INFO_SIZE as u64;
const MEMORY_MAP: u64 = MODULES + MODULE_SIZE as u64;

/// Writes `hvm_start_info` and what it points to.
pub(crate) fn write_to(handover: &Handover<'_>, ram: &GuestRam) -> Result<Placed, BootError> {
    let memory_map = memory_map(handover);
    let entries = u32::try_from(memory_map.len() / MEMORY_MAP_ENTRY_SIZE).unwrap_or(u32::MAX);
    let initrd = handover.request.initrd;
    let mut bytes = Vec::new();
    bytes.extend(MAGIC.to_le_bytes());
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(0u32.to_le_bytes()); // flags: not the initial domain
    bytes.extend(u32::from(initrd.is_some()).to_le_bytes());
    bytes.extend(initrd.map_or(0, |_| MODULES).to_le_bytes());
    bytes.extend(handover.cmdline.base.to_le_bytes());
    bytes.extend(RSDP.to_le_bytes());
    bytes.extend(MEMORY_MAP.to_le_bytes());
    bytes.extend(entries.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(module(initrd));
    bytes.extend(memory_map);
    write(ram, "PVH start info", PVH_START_INFO, &bytes)
}

/// `hvm_modlist_entry`: address, size, no command line, reserved.
fn module(initrd: Option<AddressRange>) -> [u8; MODULE_SIZE] {
    let mut entry = [0; MODULE_SIZE];
    if let (Some(range), [fields, _]) = (initrd, entry.as_chunks_mut::<16>().0) {
        let value = u128::from(range.base) | (u128::from(range.len) << 64);
        *fields = value.to_le_bytes();
    }
    entry
}

const MEMORY_MAP_ENTRY_SIZE: usize = 24;

/// `hvm_memmap_table_entry`s: address, size, type, reserved. The types are those of E820.
fn memory_map(handover: &Handover<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in e820(handover.request.plan) {
        bytes.extend(entry.range.base.to_le_bytes());
        bytes.extend(entry.range.len.to_le_bytes());
        bytes.extend((entry.kind as u32).to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
    }
    bytes
}
