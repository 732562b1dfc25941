//! The memory map: where RAM, devices and boot information go.
//!
//! Decides every fixed address of the machine. Devices lie below 2 GiB, RAM is one region above.
//! The device tree is at the start of RAM; kernel and initrd follow in the kernel window.

use arch::{
    AddressRange, DeviceKind, DevicePlan, Gsi, MachineConfig, MachinePlan, PlanError, Reserved,
    Space, size_text,
};
use vm_allocator::{AddressAllocator, AllocPolicy, IdAllocator};

use crate::Aarch64;
use crate::gic::{self, REDISTRIBUTOR};

/// The page size that memory is counted in.
pub const PAGE_SIZE: u64 = 0x1000;
/// The least RAM a machine can have, in bytes.
pub const MIN_MEMORY: u64 = 16 << 20;
/// The most vCPUs a machine can have, whatever KVM offers (KVM's own limit with a GICv3).
pub const MAX_VCPUS: u32 = 512;

/// The distributor of the interrupt controller.
pub const GIC_DISTRIBUTOR: AddressRange = AddressRange::new(0x0800_0000, 0x1_0000);
/// Its interrupt translation service: two frames of 64 KiB.
pub const GIC_ITS: AddressRange = AddressRange::new(0x0802_0000, 0x2_0000);
/// Where devices get their registers that the guest learns from the device tree.
pub const DEVICE_WINDOW: AddressRange = AddressRange::new(0x0900_0000, 0x0700_0000);
/// The redistributors of all vCPUs there can be.
pub const GIC_REDISTRIBUTORS: AddressRange =
    AddressRange::new(0x1000_0000, REDISTRIBUTOR * MAX_VCPUS as u64);
/// Where virtio devices and PCI get their addresses.
pub const MMIO_WINDOW: AddressRange = AddressRange::new(0x4000_0000, 0x4000_0000);
/// The start of RAM.
pub const RAM_BASE: u64 = 0x8000_0000;
/// The device tree. Linux maps two MiB of it at most (Documentation/arch/arm64/booting.rst).
pub const DEVICE_TREE: AddressRange = AddressRange::new(RAM_BASE, 2 << 20);

/// The register space of the legacy devices.
const DEVICE_REGISTERS: u64 = PAGE_SIZE;

fn config_error(
    field: &'static str,
    value: impl ToString,
    cause: impl Into<String>,
    cure: impl Into<String>,
) -> PlanError {
    PlanError::Config {
        field,
        value: value.to_string(),
        cause: cause.into(),
        cure: cure.into(),
    }
}

/// Computes the plan; see [`arch::Platform::setup_memory_layout`].
pub(crate) fn plan(facts: &Aarch64, config: &MachineConfig) -> Result<MachinePlan, PlanError> {
    let ram = ram(facts.ipa_bits, config.memory)?;
    let max_vcpus = facts.max_vcpus.min(MAX_VCPUS);
    if config.vcpus == 0 || config.vcpus > max_vcpus {
        let cause = format!("this host offers 1 to {max_vcpus} vCPUs");
        let cure = "choose a number in between";
        return Err(config_error("vcpus", config.vcpus, cause, cure));
    }
    let default = if config.serial {
        "console=ttyAMA0 panic=-1"
    } else {
        "panic=-1"
    };
    let window = DEVICE_TREE.end();
    Ok(MachinePlan {
        arch: "aarch64",
        ram: vec![ram],
        reserved: [
            ("GIC distributor", GIC_DISTRIBUTOR),
            ("GIC ITS", GIC_ITS),
            ("GIC redistributors", GIC_REDISTRIBUTORS),
        ]
        .map(|(name, range)| Reserved { name, range })
        .to_vec(),
        kernel_window: AddressRange::new(window, ram.end().saturating_sub(window)),
        mmio_window: MMIO_WINDOW,
        devices: devices(config)?,
        vcpus: config.vcpus,
        cmdline: config.cmdline.text(default),
    })
}

fn ram(ipa_bits: u8, memory: u64) -> Result<AddressRange, PlanError> {
    let error = |cause: &str, cure: String| {
        Err(config_error("guest-memory", size_text(memory), cause, cure))
    };
    if memory < MIN_MEMORY {
        return error(
            "too little",
            format!("give at least {} MiB", MIN_MEMORY >> 20),
        );
    }
    if !memory.is_multiple_of(PAGE_SIZE) {
        return error(
            "not whole pages",
            format!("give a multiple of {PAGE_SIZE} bytes"),
        );
    }
    let address_space = 1u64.checked_shl(ipa_bits.into()).unwrap_or(u64::MAX);
    let room = address_space.saturating_sub(RAM_BASE);
    if memory > room {
        let cause = format!("more than the host's {ipa_bits} guest address bits reach");
        return error(&cause, format!("give at most {} MiB", room >> 20));
    }
    Ok(AddressRange::new(RAM_BASE, memory))
}

fn devices(config: &MachineConfig) -> Result<Vec<DevicePlan>, PlanError> {
    let mut resources = Resources::new()?;
    let mut devices = Vec::new();
    if config.serial {
        devices.push(resources.device(DeviceKind::Pl011)?);
    }
    devices.push(resources.device(DeviceKind::Pl031)?);
    Ok(devices)
}

/// The addresses of [`DEVICE_WINDOW`] and the interrupts of the GIC, handed out from below.
struct Resources {
    addresses: AddressAllocator,
    gsis: IdAllocator,
}

impl Resources {
    fn new() -> Result<Self, PlanError> {
        let last = gic::INTIDS - gic::FIRST_SPI - 1;
        Ok(Self {
            addresses: AddressAllocator::new(DEVICE_WINDOW.base, DEVICE_WINDOW.len)
                .map_err(|cause| allocation("the device window", &cause))?,
            gsis: IdAllocator::new(0, last).map_err(|cause| allocation("the GSIs", &cause))?,
        })
    }

    fn device(&mut self, kind: DeviceKind) -> Result<DevicePlan, PlanError> {
        let range = self
            .addresses
            .allocate(DEVICE_REGISTERS, PAGE_SIZE, AllocPolicy::FirstMatch)
            .map_err(|cause| allocation("a device's registers", &cause))?;
        let gsi: Gsi = self
            .gsis
            .allocate_id()
            .map_err(|cause| allocation("a device's interrupt", &cause))?;
        Ok(DevicePlan {
            kind,
            space: Space::Mmio,
            range: AddressRange::new(range.start(), range.len()),
            irq: Some(gsi),
        })
    }
}

fn allocation(what: &'static str, cause: &vm_allocator::Error) -> PlanError {
    PlanError::Allocation {
        what,
        cause: cause.to_string(),
    }
}

#[cfg(test)]
mod tests;
