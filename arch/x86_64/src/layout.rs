//! Plans a machine on the map: where RAM and devices go, and what the command line is.

use std::borrow::Cow;

use arch::{
    AddressRange, DeviceKind, DevicePlan, GenerationId, Gsi, Limits, MachineConfig, MachinePlan,
    PciPlan, PlanError, Reserved, Resources, Space, Transport, virtio_mmio, window_above,
};

use crate::facts::X86_64;
use crate::map::{
    ACPI_POWER_IRQ, ACPI_POWER_PORTS, ACPI_TABLES, CMOS, COM1, COM1_IRQ, EBDA, FIRST_VIRTIO_GSI,
    FOUR_GIB, GENERATION_ID, HIGH_MEMORY, HOLE, I8042, IOAPIC, ISA_INTERRUPTS, KEYBOARD_IRQ,
    KVM_IDENTITY_MAP, KVM_TSS, LAPIC, MAX_VCPUS, MMIO_WINDOW, MP_TABLE, NARROW_VCPUS, PCI_ECAM,
    PCI_PORTS, PCI_WINDOW, PORT_WINDOW, RSDP_AREA, VIDEO, pins,
};
use crate::{announce, lean};

const RESERVED: [Reserved; 9] = [
    reserved("EBDA", EBDA),
    reserved("video memory", VIDEO),
    reserved("ACPI tables", ACPI_TABLES),
    // Also on a machine that has none: Linux expects no free RAM so close to a ROM's place.
    GenerationId::reserved(GENERATION_ID),
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

const fn reserved(name: &'static str, range: AddressRange) -> Reserved {
    Reserved {
        name: Cow::Borrowed(name),
        range,
    }
}

/// Computes the plan; see [`arch::Platform::setup_memory_layout`].
pub(crate) fn plan(facts: &X86_64, config: &MachineConfig) -> Result<MachinePlan, PlanError> {
    let address_space = 1u64
        .checked_shl(facts.address_bits.into())
        .unwrap_or(u64::MAX);
    let limits = Limits {
        max_memory: HOLE
            .base
            .saturating_add(address_space.saturating_sub(FOUR_GIB)),
        address_bits: facts.address_bits,
        max_vcpus: facts.max_vcpus.min(if facts.has_wide_machines() {
            MAX_VCPUS
        } else {
            NARROW_VCPUS
        }),
    };
    limits.check(config)?;
    let default = if config.serial {
        "console=ttyS0 reboot=k panic=-1"
    } else {
        "reboot=k panic=-1"
    };
    let asked = config.cmdline.text(default);
    let lean = lean::choose(facts, config, &asked);
    if config.vcpus > NARROW_VCPUS && !lean.lean {
        return Err(PlanError::Config {
            field: "vcpus".into(),
            value: config.vcpus.to_string(),
            cause: format!(
                "interrupts of the I/O APIC that a machine with lean=off has reach {NARROW_VCPUS} \
                 vCPUs, and no more"
            ),
            cure: format!("give 1 to {NARROW_VCPUS} vCPUs, or lean=auto"),
        });
    }
    let ram = ram(config.memory);
    // RAM may have all addresses: the upper window is made of what it leaves.
    let ram_end = ram.last().map_or(0, AddressRange::end);
    let pci_window = window_above(PCI_WINDOW, config.own_window)?;
    let pci = (config.transport == Transport::Pci).then(|| PciPlan {
        ecam: PCI_ECAM,
        window32: pci_window,
        window64: PciPlan::window64_above(ram_end, facts.address_bits),
        first_msi_gsi: pins(lean.lean).into(),
    });
    let devices = devices(config, lean.lean, pci.as_ref())?;
    let cmdline = announce::announce(asked.clone(), &devices, config.announce_virtio);
    let low_end = config.memory.min(HOLE.base);
    Ok(MachinePlan {
        arch: Cow::Borrowed("x86_64"),
        ram,
        reserved: reserved_ranges(lean.lean),
        kernel_window: AddressRange::new(HIGH_MEMORY, low_end.saturating_sub(HIGH_MEMORY)),
        mmio_window: MMIO_WINDOW,
        pci,
        vmgenid: config
            .vmgenid
            .then_some(GenerationId::in_page(GENERATION_ID, None)),
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
                 (CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES); else leave acpi=off away, or use transport=pci"
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
        id: None,
        messages: None,
        kind,
        space: Space::Pio,
        range,
        irq,
    };
    let mut devices = Vec::new();
    if config.serial {
        devices.push(port_device(DeviceKind::Uart16550, COM1, Some(COM1_IRQ)));
    }
    let keyboard = config.keyboard.then_some(KEYBOARD_IRQ);
    devices.push(port_device(DeviceKind::I8042, I8042, keyboard));
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
            id: None,
            messages: None,
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
    let window = window_above(MMIO_WINDOW, config.own_window)?;
    devices.extend(virtio_mmio(window, gsis, &config.virtio)?);
    Ok(devices)
}

#[cfg(test)]
mod tests;
