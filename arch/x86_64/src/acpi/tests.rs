use std::fs;
use std::process::Command;
use std::ptr::NonNull;

use acpi::fadt::Fadt;
use acpi::madt::{Madt, MadtEntry};
use acpi::{AcpiHandler, AcpiTables as Parsed, PhysicalMapping};
use arch::{AddressRange, Cmdline, MachineConfig, Platform, Transport, VirtioKind};

use super::*;
use crate::X86_64;

fn devices() -> Vec<DevicePlan> {
    let config = MachineConfig {
        memory: 256 << 20,
        vcpus: 1,
        cmdline: Cmdline::default(),
        serial: true,
        virtio: vec![VirtioKind::Block; 2],
        transport: Transport::Mmio,
    };
    X86_64::typical()
        .setup_memory_layout(&config)
        .unwrap()
        .devices
}

fn tables(vcpus: u32) -> AcpiTables {
    build(&devices(), vcpus, &IoApic::new(vcpus)).unwrap()
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

fn parse(vcpus: u32) -> Parsed<Memory> {
    let AcpiTables { rsdp, tables } = tables(vcpus);
    let memory = vec![(layout::RSDP, rsdp), (layout::ACPI_TABLES.base, tables)];
    let memory = Memory(Box::leak(memory.into_boxed_slice()));
    let rsdp = usize::try_from(layout::RSDP).unwrap();
    // SAFETY: the handler maps only what is there.
    unsafe { Parsed::from_rsdp(memory, rsdp) }.unwrap()
}

#[test]
fn an_independent_parser_finds_every_processor_and_the_io_apic() {
    for vcpus in [1, 4, 254, 255, 300, 1024] {
        let parsed = parse(vcpus);
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
    let parsed = parse(1);
    let fadt = parsed.find_table::<Fadt>().unwrap();
    let power = *find(&devices(), DeviceKind::AcpiPower).unwrap();
    assert_eq!(fadt.reset_register().unwrap().address, power.range.base + 2);
    assert_eq!(
        fadt.sleep_control_register().unwrap().unwrap().address,
        power.range.base
    );
    let flags = fadt.flags;
    assert!(flags.system_is_hw_reduced_acpi());
}

#[test]
fn every_table_sums_to_zero() {
    let AcpiTables { rsdp, tables } = tables(300);
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
    assert_eq!(seen, 4);
}

#[test]
fn iasl_disassembles_and_reassembles_the_tables_without_a_remark() {
    let folder = std::env::temp_dir().join(format!("vmm-reference-acpi-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
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
    fs::write(folder.join("dsdt.aml"), dsdt(&devices(), 5).unwrap()).unwrap();
    fs::write(folder.join("apic.aml"), madt(5, &IoApic::new(5)).unwrap()).unwrap();
    fs::write(
        folder.join("facp.aml"),
        fadt(&devices(), layout::ACPI_TABLES.base),
    )
    .unwrap();
    for name in ["dsdt", "apic", "facp"] {
        iasl(&["-d", &format!("{name}.aml")]);
        let text = iasl(&["-p", &format!("{name}-again"), &format!("{name}.dsl")]);
        assert!(
            !text.contains("Error ") && !text.contains("Warning "),
            "{name}: {text}"
        );
    }
    let dsl = fs::read_to_string(folder.join("dsdt.dsl")).unwrap();
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
    ] {
        assert!(dsl.contains(part), "{part}: {dsl}");
    }
    assert!(!dsl.contains("C005"));
    fs::remove_dir_all(&folder).unwrap();
}
