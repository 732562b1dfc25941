//! The memory map: where RAM, devices and boot information go.
//!
//! Decides every fixed address of the machine. Devices lie below 2 GiB, RAM is one region above.
//! The device tree is at the start of RAM; kernel and initrd follow in the kernel window.

use arch::{
    AddressRange, DeviceKind, DevicePlan, Gsi, Limits, MachineConfig, MachinePlan, PciPlan,
    PlanError, Reserved, Resources, Space, Transport, virtio_mmio,
};

use crate::facts::Aarch64;
use crate::gic::{self, GIC_DISTRIBUTOR, GIC_ITS, GIC_REDISTRIBUTORS, MAX_VCPUS};

/// The page size that memory is counted in.
pub const PAGE_SIZE: u64 = 0x1000;
/// The least RAM a machine can have, in bytes.
pub const MIN_MEMORY: u64 = 16 << 20;
/// Where devices get their registers that the guest learns from the device tree.
pub const DEVICE_WINDOW: AddressRange = AddressRange::new(0x0900_0000, 0x0700_0000);
/// The configuration space of the PCI bus.
pub const PCI_ECAM: AddressRange = AddressRange::new(0x3000_0000, PciPlan::ECAM_LEN);
/// Where virtio devices get their addresses: all of it is the window of 32-bit BARs on a machine
/// with a PCI bus.
pub const MMIO_WINDOW: AddressRange = AddressRange::new(0x4000_0000, 0x4000_0000);
/// The start of RAM.
pub const RAM_BASE: u64 = 0x8000_0000;
/// The device tree. Linux maps two MiB of it at most (Documentation/arch/arm64/booting.rst).
pub const DEVICE_TREE: AddressRange = AddressRange::new(RAM_BASE, 2 << 20);

/// The register space of one device.
const DEVICE_REGISTERS: u64 = PAGE_SIZE;
/// What the binding of pvpanic has (Documentation/devicetree/bindings/misc/pvpanic-mmio.txt of Linux).
const PVPANIC_REGISTERS: u64 = 2;
/// The legacy devices have the interrupts before, virtio devices those from here on.
const FIRST_VIRTIO_GSI: Gsi = 16;
const LAST_GSI: Gsi = gic::INTIDS - gic::FIRST_SPI - 1;

/// Computes the plan; see [`arch::Platform::setup_memory_layout`].
pub(crate) fn plan(facts: &Aarch64, config: &MachineConfig) -> Result<MachinePlan, PlanError> {
    let address_space = 1u64.checked_shl(facts.ipa_bits.into()).unwrap_or(u64::MAX);
    let limits = Limits {
        min_memory: MIN_MEMORY,
        max_memory: address_space.saturating_sub(RAM_BASE),
        address_bits: facts.ipa_bits,
        max_vcpus: facts.max_vcpus.min(MAX_VCPUS),
    };
    limits.check(config)?;
    let ram = AddressRange::new(RAM_BASE, config.memory);
    // RAM may have all addresses: the upper window is made of what it leaves.
    let pci = (config.transport == Transport::Pci).then(|| PciPlan {
        ecam: PCI_ECAM,
        window32: MMIO_WINDOW,
        window64: PciPlan::window64_above(ram.end(), facts.ipa_bits),
        first_msi_gsi: LAST_GSI + 1,
    });
    let default = if config.serial {
        "console=ttyAMA0 panic=-1"
    } else {
        "panic=-1"
    };
    let window = DEVICE_TREE.end();
    let cmdline = config.cmdline.text(default);
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
        devices: devices(config, pci.as_ref())?,
        pci,
        vcpus: config.vcpus,
        lean: None,
        remarks: config.remarks(&cmdline),
        cmdline,
    })
}

fn devices(config: &MachineConfig, pci: Option<&PciPlan>) -> Result<Vec<DevicePlan>, PlanError> {
    let (own, virtio) = (0..=FIRST_VIRTIO_GSI - 1, FIRST_VIRTIO_GSI..=LAST_GSI);
    let mut resources = Resources::new(Space::Mmio, DEVICE_WINDOW, own)?;
    let mut devices = Vec::new();
    if config.serial {
        devices.push(resources.device(DeviceKind::Pl011, DEVICE_REGISTERS)?);
    }
    devices.push(resources.device(DeviceKind::Pl031, DEVICE_REGISTERS)?);
    devices.push(resources.device(DeviceKind::Pl061, DEVICE_REGISTERS)?);
    devices.push(DevicePlan {
        kind: DeviceKind::Pvpanic,
        space: Space::Mmio,
        range: resources.range(PVPANIC_REGISTERS)?,
        irq: None,
    });
    if let Some(pci) = pci {
        devices.extend(pci.devices(&config.virtio, None)?);
        return Ok(devices);
    }
    devices.extend(virtio_mmio(MMIO_WINDOW, virtio, &config.virtio)?);
    Ok(devices)
}

#[cfg(test)]
mod tests;
