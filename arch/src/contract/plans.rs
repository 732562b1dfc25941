//! Plans over a sweep of sizes.

use super::machines::{GIB, MIB, PAGE, apart, config, disjoint, variants};
use crate::{
    AddressRange, DeviceKind, DevicePlan, Gsi, IrqModel, MachineConfig, MachinePlan, PlanError,
    Platform, Space, Transport, VIRTIO_PCI_BAR, VirtioKind,
};

/// The I/O ports of the architectures that have them.
const PORTS: AddressRange = AddressRange::new(0, 0x1_0000);
/// Bytes of the configuration space of one PCI bus.
const ECAM: u64 = MIB;

/// RAM sizes around every power of two from 16 MiB to 1 TiB and every GiB up to 8, where the gaps
/// of memory maps are.
fn memory_sizes() -> impl Iterator<Item = u64> {
    let powers = (24..=40).map(|bits| 1 << bits);
    let gibs = (1..=8).map(|gib| gib * GIB);
    powers
        .chain(gibs)
        .flat_map(|size| [size - PAGE, size, size + PAGE])
        .filter(|size| *size >= 16 * MIB)
}

/// Plans over a sweep of sizes: RAM adds up, nothing overlaps, interrupts are the chip's, and the
/// same input gives the same plan.
///
/// # Panics
/// When a plan breaks a rule.
pub fn plans_hold_over_all_sizes<P: Platform>(platform: &P) {
    let mut planned = 0;
    for memory in memory_sizes() {
        for vcpus in [1, 2, 3, 8, 64, 254, 255, 256] {
            for config in variants(&config(memory, vcpus)) {
                match platform.setup_memory_layout(&config) {
                    Ok(plan) => {
                        check(platform, &config, &plan);
                        assert_eq!(Ok(plan), platform.setup_memory_layout(&config));
                        planned += 1;
                    }
                    // A host may be too small for this machine; then it says which value is too
                    // large.
                    Err(PlanError::Config { field, .. }) => {
                        assert!(
                            ["guest-memory", "vcpus"].contains(&field.as_str()),
                            "{field}"
                        );
                        assert!(memory > GIB || vcpus > 8, "{config:?} is refused");
                    }
                    Err(error) => panic!("{config:?}: {error}"),
                }
            }
        }
    }
    assert!(planned > 0);
}

fn check<P: Platform>(platform: &P, config: &MachineConfig, plan: &MachinePlan) {
    assert_eq!(plan.ram_size(), config.memory, "RAM of {plan:?}");
    assert_eq!(plan.vcpus, config.vcpus, "vCPUs of {plan:?}");
    assert!(plan.ram.is_sorted(), "RAM of {plan:?}");
    disjoint("RAM", &plan.ram);
    for range in &plan.ram {
        let whole_pages = range.base.is_multiple_of(PAGE) && range.len.is_multiple_of(PAGE);
        assert!(whole_pages && range.len > 0, "{range:?} in RAM of {plan:?}");
    }
    let reserved: Vec<_> = plan.reserved.iter().map(|part| part.range).collect();
    disjoint("reserved", &reserved);

    let window = &plan.kernel_window;
    assert!(
        plan.ram.iter().any(|range| range.contains(window)) && window.len > 0,
        "the kernel window lies outside RAM: {plan:?}"
    );
    let in_window = reserved.iter().find(|range| range.overlaps(window));
    assert_eq!(in_window, None, "reserved in the kernel window");
    apart("RAM", &plan.ram, "the MMIO window", &[plan.mmio_window]);

    for space in [Space::Mmio, Space::Pio] {
        let devices = plan.devices.iter().filter(|device| device.space == space);
        let ranges: Vec<_> = devices.map(|device| device.range).collect();
        disjoint("devices", &ranges);
        match space {
            Space::Mmio => {
                apart("RAM", &plan.ram, "devices", &ranges);
                apart("reserved", &reserved, "devices", &ranges);
            }
            Space::Pio => assert!(ranges.iter().all(|range| PORTS.contains(range))),
        }
    }
    if let Some(id) = &plan.vmgenid {
        assert!(config.vmgenid, "a generation ID that nobody asked for");
        assert!(
            id.is_in_ram_of(plan) && reserved.iter().any(|range| range.contains(&id.range)),
            "the generation ID is not in reserved RAM: {plan:?}"
        );
        assert!(id.range.base.is_multiple_of(id.range.len), "{id:?}");
    }
    check_interrupts(platform, plan);
    for transport in [Transport::Mmio, Transport::Pci] {
        let wanted = if config.transport == transport {
            &config.virtio[..]
        } else {
            &[]
        };
        assert_eq!(
            virtio_devices(plan, transport),
            wanted,
            "{transport:?} devices of {plan:?}"
        );
    }
    assert_eq!(
        plan.pci.is_some(),
        config.transport == Transport::Pci,
        "PCI bus of {plan:?}"
    );
    check_pci(plan, &reserved);
}

fn check_interrupts<P: Platform>(platform: &P, plan: &MachinePlan) {
    let chip = match platform.irq_chip(plan) {
        Ok(chip) => chip,
        Err(error) => panic!("no interrupt chip for {plan:?}: {error}"),
    };
    let lines = chip.lines();
    let of_devices = plan.devices.iter().filter_map(|device| device.irq);
    let of_id = plan.vmgenid.and_then(|id| id.irq);
    let mut gsis: Vec<_> = of_devices.chain(of_id).collect();
    assert!(
        gsis.iter().all(|gsi| lines.contains(gsi)),
        "interrupts outside {lines:?}: {gsis:?}"
    );
    let count = gsis.len();
    gsis.sort_unstable();
    gsis.dedup();
    assert_eq!(gsis.len(), count, "interrupts are shared: {plan:?}");

    let routes: Vec<_> = chip.wired_routes().iter().map(|route| route.gsi).collect();
    let by_device = plan.devices.iter().find_map(|device| match device.kind {
        DeviceKind::IoApic { pins } => Some(Gsi::from(pins)),
        _ => None,
    });
    if let Some(pins) = by_device {
        assert!(
            routes.is_empty(),
            "a device routes the lines, and so does KVM"
        );
        assert_eq!(lines, 0..pins, "the lines of a device");
    } else {
        let unwired = lines.clone().find(|line| !routes.contains(line));
        assert_eq!(unwired, None, "a line goes nowhere");
    }
    assert!(routes.iter().all(|gsi| lines.contains(gsi)), "{routes:?}");
    if let Some(pci) = &plan.pci {
        let first = pci.first_msi_gsi;
        assert!(
            first >= lines.end,
            "messages from {first} on, lines to {lines:?}"
        );
    }
}

/// The virtio devices behind a transport, in order.
pub(super) fn virtio_devices(plan: &MachinePlan, transport: Transport) -> Vec<VirtioKind> {
    let kind = |device: &DevicePlan| match (device.kind, transport) {
        (DeviceKind::VirtioMmio(kind), Transport::Mmio)
        | (DeviceKind::VirtioPci { kind, .. }, Transport::Pci) => Some(kind),
        _ => None,
    };
    plan.devices.iter().filter_map(kind).collect()
}

/// The bus lies where nothing else does, and its devices lie in its window.
fn check_pci(plan: &MachinePlan, reserved: &[AddressRange]) {
    let (mut slots, mut others) = (Vec::new(), Vec::new());
    let mut bars = Vec::new();
    let mut ecam = None;
    for device in &plan.devices {
        match device.kind {
            DeviceKind::PciEcam => ecam = Some(device.range),
            DeviceKind::VirtioPci { slot, .. } => {
                slots.push(slot);
                bars.push(device.range);
            }
            _ if device.space == Space::Mmio => others.push(device.range),
            _ => {}
        }
    }
    assert_eq!(ecam, plan.pci.map(|pci| pci.ecam), "ECAM of {plan:?}");
    let Some(pci) = &plan.pci else {
        return;
    };
    let parts: Vec<_> = [pci.ecam, pci.window32]
        .into_iter()
        .chain(pci.window64)
        .collect();
    disjoint("the PCI bus", &parts);
    for (name, ranges) in [
        ("RAM", &plan.ram[..]),
        ("reserved", reserved),
        ("other devices", &others),
    ] {
        apart(name, ranges, "the PCI bus", &parts);
    }
    assert!(
        pci.ecam.len >= ECAM && pci.ecam.base.is_multiple_of(ECAM),
        "{pci:x?}"
    );
    assert!(pci.window32.end() <= 4 * GIB, "{pci:x?}");
    assert!(parts.iter().all(|part| part.len > 0), "{pci:x?}");
    for bar in bars {
        let natural = bar.len == VIRTIO_PCI_BAR && bar.base.is_multiple_of(bar.len);
        assert!(
            natural && pci.window32.contains(&bar),
            "the BAR {bar:x?} is not in {pci:x?}"
        );
    }
    assert!(slots.iter().all(|slot| (1..32).contains(slot)), "{slots:?}");
    let count = slots.len();
    slots.sort_unstable();
    slots.dedup();
    assert_eq!(slots.len(), count, "slots are shared: {plan:?}");
}
