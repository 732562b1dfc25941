//! The memory map and the I/O port map: where RAM, devices and boot information go.
//!
//! Decides every fixed address of the machine. RAM starts at 0 and leaves a hole below 4 GiB for
//! memory-mapped devices; what does not fit below the hole continues at 4 GiB. Boot information
//! that only matters until the kernel runs lies in low RAM and is not reserved.

use arch::{
    AddressRange, DeviceKind, DevicePlan, Gsi, Limits, MachineConfig, MachinePlan, PciPlan,
    PlanError, Reserved, Resources, Space, Transport, virtio_mmio,
};

use crate::{X86_64, announce, lean};

/// The page size that memory is counted in.
pub const PAGE_SIZE: u64 = 0x1000;
/// The least RAM a machine can have, in bytes.
pub const MIN_MEMORY: u64 = 16 << 20;
/// The most vCPUs a machine can have, whatever KVM offers.
pub const MAX_VCPUS: u32 = 1024;

/// The part of the address space below 4 GiB that never is RAM.
pub const HOLE: AddressRange = AddressRange::new(0xC000_0000, 0x4000_0000);
/// Where memory-mapped devices get their addresses: the hole up to the I/O APIC.
pub const MMIO_WINDOW: AddressRange =
    AddressRange::new(HOLE.base, IOAPIC.base.wrapping_sub(HOLE.base));
/// Where 32-bit BARs of PCI devices may be.
pub const PCI_WINDOW: AddressRange = AddressRange::new(HOLE.base, 0x2000_0000);
/// The configuration space of the PCI bus.
pub const PCI_ECAM: AddressRange = AddressRange::new(0xE000_0000, PciPlan::ECAM_LEN);
/// The I/O APIC (KVM's IOAPIC_DEFAULT_BASE_ADDRESS).
pub const IOAPIC: AddressRange = AddressRange::new(0xFEC0_0000, PAGE_SIZE);
/// Input pins of KVM's I/O APIC (KVM_IOAPIC_NUM_PINS).
pub const KVM_IOAPIC_PINS: u8 = 24;
/// Input pins of the I/O APIC that a lean machine has instead, enough for any number of devices.
pub const LEAN_IOAPIC_PINS: u8 = 64;
/// Guest physical address of every vCPU's local APIC (APIC_DEFAULT_PHYS_BASE).
pub const LAPIC_ADDRESS: u32 = 0xFEE0_0000;
/// The local APIC's registers.
pub const LAPIC: AddressRange = AddressRange::new(LAPIC_ADDRESS as u64, PAGE_SIZE);
/// The page KVM needs to run real mode on old Intel processors (KVM_SET_IDENTITY_MAP_ADDR).
pub const KVM_IDENTITY_MAP: AddressRange = AddressRange::new(0xFFFB_C000, PAGE_SIZE);
/// The pages KVM needs for its real-mode TSS on Intel processors (KVM_SET_TSS_ADDR).
pub const KVM_TSS: AddressRange = AddressRange::new(0xFFFB_D000, 3 * PAGE_SIZE);

/// The boot vCPU's global descriptor table; room for 16 descriptors.
pub const GDT: AddressRange = AddressRange::new(0x500, 0x80);
/// `hvm_start_info` of the PVH protocol, with its module list and memory map.
pub const PVH_START_INFO: AddressRange = AddressRange::new(0x6000, PAGE_SIZE);
/// `boot_params` of the Linux protocol.
pub const ZERO_PAGE: AddressRange = AddressRange::new(0x7000, PAGE_SIZE);
/// The stack pointer at the 64-bit entry; the stack grows down to the end of the zero page.
pub const BOOT_STACK: u64 = 0x8FF0;
/// PML4, PDPT and four page directories.
pub const PAGE_TABLES: AddressRange = AddressRange::new(0x9000, 6 * PAGE_SIZE);
/// The kernel command line with its final zero.
pub const CMDLINE: AddressRange = AddressRange::new(0x2_0000, 0x1_0000);

/// The extended BIOS data area, the traditional end of conventional memory.
pub const EBDA: AddressRange = AddressRange::new(0x9_FC00, 0x400);
/// The legacy video memory; there is none, and guests do not expect RAM there.
pub const VIDEO: AddressRange = AddressRange::new(0xA_0000, 0x2_0000);
/// Every ACPI table except the RSDP.
pub const ACPI_TABLES: AddressRange = AddressRange::new(0xC_0000, 0x2_0000);
/// The ACPI root pointer, in the area that a PC guest scans for it (ACPI 6.5, 5.2.5.1).
pub const RSDP: u64 = 0xE_0000;
/// The area of the root pointer.
pub const RSDP_AREA: AddressRange = AddressRange::new(RSDP, 0x1_0000);
/// The MP table, in the area that a guest scans for it (MultiProcessor Specification 1.4, 4).
pub const MP_TABLE: AddressRange = AddressRange::new(0xF_0000, 0x1_0000);
/// The first address of the kernel window.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// Where RAM continues above the hole.
pub const FOUR_GIB: u64 = 1 << 32;

/// The first serial port, COM1.
pub const COM1: AddressRange = AddressRange::new(0x3F8, 8);
/// The interrupt of COM1.
pub const COM1_IRQ: u32 = 4;
/// The keyboard controller: data port 0x60 to command port 0x64. Where KVM has an interval timer, it keeps
/// 0x61 to itself.
pub const I8042: AddressRange = AddressRange::new(0x60, 5);
/// The real-time clock: index and data port.
pub const CMOS: AddressRange = AddressRange::new(0x70, 2);
/// The address port and the data port of the PCI configuration space.
pub const PCI_PORTS: AddressRange = AddressRange::new(0xCF8, 8);
/// Ports for devices whose place the guest learns from a table.
pub const PORT_WINDOW: AddressRange = AddressRange::new(0x600, 0x100);
/// Ports of the ACPI power registers: sleep control, sleep status, reset, events.
const ACPI_POWER_PORTS: u64 = 4;
/// The interrupt of their events: on a PC that of a second parallel port.
const ACPI_POWER_IRQ: u32 = 5;
/// Interrupts that a PC's PICs have.
const ISA_INTERRUPTS: Gsi = 16;
/// The first interrupt of a virtio device: what a PC keeps for COM1 and the clock is below.
const FIRST_VIRTIO_GSI: Gsi = 9;

const RESERVED: [Reserved; 8] = [
    reserved("EBDA", EBDA),
    reserved("video memory", VIDEO),
    reserved("ACPI tables", ACPI_TABLES),
    reserved("ACPI root pointer", RSDP_AREA),
    reserved("MP table", MP_TABLE),
    reserved("local APIC", LAPIC),
    reserved("KVM identity map", KVM_IDENTITY_MAP),
    reserved("KVM TSS", KVM_TSS),
];

/// On a lean machine the I/O APIC is one of the devices.
fn reserved_ranges(lean: bool) -> Vec<Reserved> {
    let mut ranges = RESERVED.to_vec();
    if !lean {
        ranges.push(reserved("I/O APIC", IOAPIC));
    }
    ranges
}

/// Pins of the I/O APIC.
pub(crate) const fn pins(lean: bool) -> u8 {
    if lean {
        LEAN_IOAPIC_PINS
    } else {
        KVM_IOAPIC_PINS
    }
}

const fn reserved(name: &'static str, range: AddressRange) -> Reserved {
    Reserved { name, range }
}

/// Computes the plan; see [`arch::Platform::setup_memory_layout`].
pub(crate) fn plan(facts: &X86_64, config: &MachineConfig) -> Result<MachinePlan, PlanError> {
    let address_space = 1u64
        .checked_shl(facts.address_bits.into())
        .unwrap_or(u64::MAX);
    let limits = Limits {
        min_memory: MIN_MEMORY,
        max_memory: HOLE
            .base
            .saturating_add(address_space.saturating_sub(FOUR_GIB)),
        address_bits: facts.address_bits,
        max_vcpus: facts.max_vcpus.min(MAX_VCPUS),
    };
    limits.check(config)?;
    let default = if config.serial {
        "console=ttyS0 reboot=k panic=-1"
    } else {
        "reboot=k panic=-1"
    };
    let asked = config.cmdline.text(default);
    let lean = lean::choose(facts, config, &asked);
    let ram = ram(config.memory);
    // RAM may have all addresses: the upper window is made of what it leaves.
    let ram_end = ram.last().map_or(0, AddressRange::end);
    let pci = (config.transport == Transport::Pci).then(|| PciPlan {
        ecam: PCI_ECAM,
        window32: PCI_WINDOW,
        window64: PciPlan::window64_above(ram_end, facts.address_bits),
        first_msi_gsi: pins(lean.lean).into(),
    });
    let devices = devices(config, lean.lean, pci.as_ref())?;
    let cmdline = announce::announce(asked.clone(), &devices);
    let low_end = config.memory.min(HOLE.base);
    Ok(MachinePlan {
        arch: "x86_64",
        ram,
        reserved: reserved_ranges(lean.lean),
        kernel_window: AddressRange::new(HIGH_MEMORY, low_end.saturating_sub(HIGH_MEMORY)),
        mmio_window: MMIO_WINDOW,
        pci,
        vcpus: config.vcpus,
        remarks: remarks(config, lean.lean, &devices, &asked),
        devices,
        lean: Some(lean),
        cmdline,
    })
}

/// `cmdline` is what the user asked for, without what is added to it.
fn remarks(
    config: &MachineConfig,
    lean: bool,
    devices: &[DevicePlan],
    cmdline: &str,
) -> Vec<String> {
    let mut remarks = config.remarks(cmdline);
    if announce::is_acpi_off(cmdline) {
        if config.transport == Transport::Mmio
            && !config.virtio.is_empty()
            && !announce::is_announced(cmdline)
        {
            remarks.push(
                "acpi=off: a Linux guest learns of its virtio devices from its command line \
                 (virtio_mmio.device=, added to yours), and finds them if its kernel reads that \
                 (CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES); else leave acpi=off away, or use --transport=pci"
                    .to_owned(),
            );
        }
        let beyond_pics = |device: &DevicePlan| device.irq.is_some_and(|irq| irq >= ISA_INTERRUPTS);
        if config.transport == Transport::Pci || config.vcpus > 1 || devices.iter().any(beyond_pics)
        {
            remarks.push(
                "acpi=off: a Linux guest finds its other vCPUs, the interrupts of PCI devices and those \
                 from 16 on only if its kernel reads the MP table (CONFIG_X86_MPPARSE)"
                    .to_owned(),
            );
        }
        if lean {
            remarks.push(
                "acpi=off: a Linux guest then keeps its time by the interval timer, which a lean \
                 machine has not; leave one of the two away"
                    .to_owned(),
            );
        }
        remarks.push(
            "acpi=off: a Linux guest cannot power off, it halts; and it does not see the power \
             button"
                .to_owned(),
        );
    }
    remarks
}

/// Splits `memory` bytes of RAM around the hole.
fn ram(memory: u64) -> Vec<AddressRange> {
    let low = AddressRange::new(0, memory.min(HOLE.base));
    match memory.saturating_sub(low.len) {
        0 => vec![low],
        rest => vec![low, AddressRange::new(FOUR_GIB, rest)],
    }
}

fn devices(
    config: &MachineConfig,
    lean: bool,
    pci: Option<&PciPlan>,
) -> Result<Vec<DevicePlan>, PlanError> {
    let mut ports = Resources::new(Space::Pio, PORT_WINDOW, 0..=0)?;
    let port_device = |kind, range, irq| DevicePlan {
        kind,
        space: Space::Pio,
        range,
        irq,
    };
    let mut devices = Vec::new();
    if config.serial {
        devices.push(port_device(DeviceKind::Uart16550, COM1, Some(COM1_IRQ)));
    }
    devices.push(port_device(DeviceKind::I8042, I8042, None));
    devices.push(port_device(DeviceKind::Cmos, CMOS, None));
    let power = ports.range(ACPI_POWER_PORTS)?;
    devices.push(port_device(
        DeviceKind::AcpiPower,
        power,
        Some(ACPI_POWER_IRQ),
    ));
    devices.push(port_device(DeviceKind::Pvpanic, ports.range(1)?, None));
    let pins = pins(lean);
    if lean {
        devices.push(DevicePlan {
            kind: DeviceKind::IoApic { pins },
            space: Space::Mmio,
            range: IOAPIC,
            irq: None,
        });
    }
    if let Some(pci) = pci {
        devices.extend(pci.devices(&config.virtio, Some(PCI_PORTS))?);
        return Ok(devices);
    }
    let gsis = FIRST_VIRTIO_GSI..=Gsi::from(pins) - 1;
    devices.extend(virtio_mmio(MMIO_WINDOW, gsis, &config.virtio)?);
    Ok(devices)
}

#[cfg(test)]
mod tests;
