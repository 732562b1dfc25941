use std::fs;
use std::process::Command;
use std::ptr::NonNull;

use acpi::fadt::Fadt;
use acpi::madt::{Madt, MadtEntry};
use acpi::mcfg::Mcfg;
use acpi::{AcpiHandler, AcpiTables as Parsed, PhysicalMapping};
use arch::{
    AddressRange, Cmdline, GuestKernel, Lean, MachineConfig, Platform, Transport, VirtioKind,
};

use super::*;
use crate::X86_64;
use crate::irqchip::Keeper;

fn config(vcpus: u32, transport: Transport) -> MachineConfig {
    MachineConfig {
        lean: Lean::Auto,
        kernel: GuestKernel::Unknown,
        vmgenid: true,
        own_window: 0,
        keyboard: false,
        announce_virtio: false,
        memory: 256 << 20,
        vcpus,
        cmdline: Cmdline::default(),
        serial: true,
        virtio: vec![VirtioKind::Block; 2],
        transport,
    }
}

fn planned(config: &MachineConfig) -> MachinePlan {
    X86_64::typical().setup_memory_layout(config).unwrap()
}

fn plan(vcpus: u32, transport: Transport) -> MachinePlan {
    planned(&config(vcpus, transport))
}

fn tables(plan: &MachinePlan) -> AcpiTables {
    let chip = X86_64::typical().irq_chip(plan).unwrap();
    build(plan, &chip).unwrap()
}

/// Serves physical addresses from the bytes that the guest would find there.
#[derive(Clone)]
struct Memory(&'static [(u64, Vec<u8>)]);

impl AcpiHandler for Memory {
    unsafe fn map_physical_region<T>(
        &self,
        address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        let (base, bytes) = self
            .0
            .iter()
            .find(|(base, bytes)| {
                AddressRange::new(*base, bytes.len() as u64)
                    .contains(&AddressRange::new(address as u64, size as u64))
            })
            .unwrap_or_else(|| panic!("nothing at {address:#x}, {size} bytes"));
        let offset = usize::try_from(address as u64 - base).unwrap();
        let start = NonNull::from(&bytes[offset]).cast();
        // SAFETY: the bytes are never freed, and the range lies inside them.
        unsafe { PhysicalMapping::new(address, start, size, size, self.clone()) }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}

fn parse(plan: &MachinePlan) -> Parsed<Memory> {
    let AcpiTables { rsdp, tables } = tables(plan);
    let memory = vec![(map::RSDP, rsdp), (map::ACPI_TABLES.base, tables)];
    let memory = Memory(Box::leak(memory.into_boxed_slice()));
    let rsdp = usize::try_from(map::RSDP).unwrap();
    // SAFETY: the handler maps only what is there.
    unsafe { Parsed::from_rsdp(memory, rsdp) }.unwrap()
}

#[test]
fn an_independent_parser_finds_every_processor_and_the_io_apic() {
    for vcpus in [1, 4, 254, 255, 300, 1024] {
        let parsed = parse(&plan(vcpus, Transport::Mmio));
        let madt = parsed.find_table::<Madt>().unwrap();
        let (mut ids, mut io_apics) = (Vec::new(), 0);
        for entry in madt.get().entries() {
            match entry {
                MadtEntry::LocalApic(apic) => ids.push(u32::from(apic.apic_id)),
                MadtEntry::LocalX2Apic(apic) => ids.push(apic.x2apic_id),
                MadtEntry::IoApic(_) => io_apics += 1,
                _ => {}
            }
        }
        assert_eq!(ids, (0..vcpus).collect::<Vec<_>>());
        assert_eq!(io_apics, 1);
    }
}

#[test]
fn the_fadt_announces_the_planned_power_registers() {
    let plan = plan(1, Transport::Mmio);
    let parsed = parse(&plan);
    let fadt = parsed.find_table::<Fadt>().unwrap();
    let power = find(&plan.devices, DeviceKind::AcpiPower).unwrap();
    assert_eq!(fadt.reset_register().unwrap().address, power.range.base + 2);
    assert_eq!(
        fadt.sleep_control_register().unwrap().unwrap().address,
        power.range.base
    );
    let flags = fadt.flags;
    assert!(flags.system_is_hw_reduced_acpi());
}

#[test]
fn the_mcfg_names_the_planned_configuration_space_of_bus_0() {
    let plan = plan(1, Transport::Pci);
    let parsed = parse(&plan);
    let mcfg = parsed.find_table::<Mcfg>().unwrap();
    let mcfg = mcfg.get();
    let [entry] = mcfg.entries() else {
        panic!("one bus, one entry");
    };
    let ecam = find(&plan.devices, DeviceKind::PciEcam).unwrap().range;
    let (base, segment) = (entry.base_address, entry.pci_segment_group);
    assert_eq!((base, segment), (ecam.base, 0));
    assert_eq!((entry.bus_number_start, entry.bus_number_end), (0, 0));
    let fadt = parsed.find_table::<Fadt>().unwrap();
    assert!(!{ fadt.iapc_boot_arch }.dont_enable_msi());
}

#[test]
fn a_machine_without_a_bus_describes_none() {
    let plan = plan(1, Transport::Mmio);
    assert!(parse(&plan).find_table::<Mcfg>().is_err());
    let dsdt = dsdt(&plan).unwrap();
    assert!(!dsdt.windows(4).any(|name| name == b"PCI0"));
}

#[test]
fn every_table_sums_to_zero() {
    for (transport, count) in [(Transport::Mmio, 4), (Transport::Pci, 5)] {
        let AcpiTables { rsdp, tables } = tables(&plan(300, transport));
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let mut rest = &tables[..];
        let mut seen = 0;
        while rest.len() >= 36 {
            if rest[0] == 0 {
                rest = &rest[1..];
                continue;
            }
            let len = u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize;
            assert_eq!(sum(&rest[..len]), 0, "{:?}", &rest[..4]);
            rest = &rest[len..];
            seen += 1;
        }
        assert_eq!(seen, count);
    }
}

/// Disassembles and reassembles every table of a machine with iasl, and gives the DSDT's text.
fn reassembled(plan: &MachinePlan) -> String {
    let folder = tempfile::tempdir().unwrap();
    let iasl = |arguments: &[&str]| {
        let output = Command::new("iasl")
            .current_dir(&folder)
            .args(arguments)
            .output();
        let output = output.expect("iasl is needed (Debian: acpica-tools)");
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        text
    };
    let mut tables = vec![
        ("dsdt", dsdt(plan).unwrap()),
        (
            "apic",
            madt(plan.vcpus, &IoApic::new(plan.vcpus, Keeper::Kvm)).unwrap(),
        ),
        ("facp", fadt(&plan.devices, map::ACPI_TABLES.base)),
    ];
    tables.extend(plan.pci.iter().map(|bus| ("mcfg", pci::mcfg(bus))));
    for (name, bytes) in tables {
        fs::write(folder.path().join(format!("{name}.aml")), bytes).unwrap();
        iasl(&["-d", &format!("{name}.aml")]);
        let text = iasl(&["-p", &format!("{name}-again"), &format!("{name}.dsl")]);
        assert!(
            !text.contains("Error ") && !text.contains("Warning "),
            "{name}: {text}"
        );
    }
    fs::read_to_string(folder.path().join("dsdt.dsl")).unwrap()
}

#[test]
fn iasl_disassembles_and_reassembles_the_tables_without_a_remark() {
    let dsl = reassembled(&plan(5, Transport::Mmio));
    for part in [
        "PNP0501",
        "0x03F8",
        "PNP0B00",
        "0x0070",
        "LNRO0005",
        "V001",
        "0xC0001000",
        "ACPI0007",
        "C004",
        "_S5",
        "VM_Gen_Counter",
        "0x000DFFF0",
        "Notify (VGEN, 0x80)",
        "Notify (PWRB, 0x80)",
    ] {
        assert!(dsl.contains(part), "{part}: {dsl}");
    }
    assert!(!dsl.contains("C005"));
    assert!(!dsl.contains("PNP0303"), "{dsl}");
    let without = MachinePlan {
        vmgenid: None,
        ..plan(1, Transport::Mmio)
    };
    let dsl = reassembled(&without);
    assert!(dsl.contains("PWRB") && !dsl.contains("VGEN"), "{dsl}");
}

#[test]
fn a_keyboard_is_told_of_where_it_is_asked_for_with_its_ports_and_interrupt() {
    for (keyboard, irq) in [(false, None), (true, Some(1))] {
        let plan = planned(&MachineConfig {
            keyboard,
            ..config(1, Transport::Mmio)
        });
        assert_eq!(find(&plan.devices, DeviceKind::I8042).unwrap().irq, irq);
        let parsed = parse(&plan);
        let fadt = parsed.find_table::<Fadt>().unwrap();
        assert_eq!(
            { fadt.iapc_boot_arch }.motherboard_implements_8042(),
            keyboard
        );
        let dsl = reassembled(&plan);
        let described = dsl.split("PNP0303").nth(1);
        assert_eq!(described.is_some(), keyboard, "{dsl}");
        for part in ["0x0060", "0x0064", "0x00000001"] {
            assert!(described.is_none_or(|text| text.contains(part)), "{dsl}");
        }
    }
}

#[test]
fn iasl_reads_the_pci_bus_as_it_was_planned() {
    let plan = plan(2, Transport::Pci);
    let dsl = reassembled(&plan);
    let pci = plan.pci.unwrap();
    let high = pci.window64.unwrap();
    let numbers = [
        format!("0x{:08X}", pci.ecam.base),
        format!("0x{:08X}", pci.window32.base),
        format!("0x{:08X}", pci.window32.end() - 1),
        format!("0x{:016X}", high.base),
        format!("0x{:016X}", high.end() - 1),
    ];
    for part in numbers.iter().map(String::as_str).chain([
        "PNP0C02",
        "PNP0A08",
        "PNP0A03",
        "WordBusNumber",
        "0x0CF8",
        "33db4d5b-1ff7-401c-9657-7441c03dd766",
        "_OSC",
    ]) {
        assert!(dsl.contains(part), "{part}: {dsl}");
    }
    assert!(!dsl.contains("LNRO0005"));
}
