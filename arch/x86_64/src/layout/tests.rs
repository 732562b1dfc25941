use arch::{Cmdline, ConfigPath, GuestKernel, LEAST_MEMORY, Lean, Transport};
use proptest::prelude::*;

use super::*;
use crate::map::{BOOT_STACK, CMDLINE, GDT, PAGE_SIZE, PAGE_TABLES, PVH_START_INFO, ZERO_PAGE};

fn config(memory: u64) -> MachineConfig {
    MachineConfig {
        lean: Lean::Off,
        kernel: GuestKernel::Unknown,
        vmgenid: true,
        own_window: 0,
        keyboard: false,
        announce_virtio: false,
        memory,
        vcpus: 2,
        cmdline: Cmdline::default(),
        serial: true,
        virtio: Vec::new(),
        transport: Transport::Mmio,
    }
}

fn plan_of(memory: u64) -> Result<MachinePlan, PlanError> {
    plan(&X86_64::typical(), &config(memory))
}

fn field_and_cause(error: PlanError) -> (ConfigPath, String) {
    match error {
        PlanError::Config { field, cause, .. } => (field, cause),
        _ => panic!("{error}"),
    }
}

/// What holds for the RAM of every plan.
fn check_ram(memory: u64) {
    let plan = plan_of(memory).unwrap();
    assert_eq!(plan.ram_size(), memory);
    assert_eq!(plan.ram[0].base, 0);
    assert!(
        plan.ram
            .iter()
            .all(|ram| !ram.overlaps(&HOLE) && ram.len > 0)
    );
    assert!(
        plan.ram
            .windows(2)
            .all(|pair| pair[0].end() <= pair[1].base)
    );
    assert!(plan.ram[0].contains(&plan.kernel_window));
    assert!(plan.kernel_window.len > 0);
}

#[test]
fn ram_totals_are_right_around_every_border() {
    for border in [
        LEAST_MEMORY,
        HOLE.base,
        FOUR_GIB,
        1 << 40,
        1 << 44,
        (1 << 46) - HOLE.len,
    ] {
        for memory in [border - PAGE_SIZE, border, border + PAGE_SIZE] {
            let most = (1 << 46) - HOLE.len;
            if (LEAST_MEMORY..=most).contains(&memory) {
                check_ram(memory);
            } else {
                assert!(plan_of(memory).is_err(), "{memory:#x}");
            }
        }
    }
}

#[test]
fn a_machine_that_fills_the_space_below_the_hole_has_one_region() {
    assert_eq!(
        plan_of(HOLE.base).unwrap().ram,
        [AddressRange::new(0, HOLE.base)]
    );
}

#[test]
fn one_more_page_continues_at_4_gib() {
    let ram = plan_of(HOLE.base + PAGE_SIZE).unwrap().ram;
    assert_eq!(ram[1..], [AddressRange::new(FOUR_GIB, PAGE_SIZE)]);
}

#[test]
fn wrong_memory_sizes_are_refused_with_the_cure() {
    for (memory, cure) in [
        (0, "at least 16 MiB"),
        (LEAST_MEMORY - PAGE_SIZE, "at least 16 MiB"),
        (LEAST_MEMORY + 1, "multiple of 4096"),
        (1 << 46, "at most 67107840 MiB"),
        (!(PAGE_SIZE - 1), "at most 67107840 MiB"),
    ] {
        let error = plan_of(memory).unwrap_err();
        let PlanError::Config {
            field, cure: found, ..
        } = error
        else {
            panic!("{error:?}");
        };
        assert_eq!(field, "guest-memory");
        assert!(found.contains(cure), "{found}");
    }
}

#[test]
fn narrow_processors_offer_no_ram_above_4_gib() {
    let facts = X86_64 {
        address_bits: 32,
        ..X86_64::typical()
    };
    assert!(plan(&facts, &config(HOLE.base)).is_ok());
    assert!(plan(&facts, &config(FOUR_GIB)).is_err());
}

#[test]
fn vcpu_numbers_are_bounded_by_the_host_and_by_the_platform() {
    let with = |max_vcpus, vcpus| {
        let facts = X86_64 {
            max_vcpus,
            ..X86_64::typical()
        };
        vcpus_of(&facts, Lean::On, vcpus)
    };
    assert_eq!(with(8, 1), Ok(1));
    assert_eq!(with(8, 8), Ok(8));
    assert_eq!(with(4096, 1024), Ok(1024));
    for (max_vcpus, vcpus) in [(8, 0), (8, 9), (4096, 1025)] {
        let (field, cause) = field_and_cause(with(max_vcpus, vcpus).unwrap_err());
        assert_eq!(field, "vcpus");
        assert!(cause.contains("1 to"), "{cause}");
    }
}

fn vcpus_of(facts: &X86_64, lean: Lean, vcpus: u32) -> Result<u32, PlanError> {
    let config = MachineConfig {
        vcpus,
        lean,
        ..config(1 << 30)
    };
    plan(facts, &config).map(|plan| plan.vcpus)
}

#[test]
fn r69_only_lean_machines_have_more_vcpus_than_8_bits_can_name() {
    let facts = X86_64::typical();
    for (lean, most) in [(Lean::Off, 255), (Lean::On, 1024), (Lean::Auto, 1024)] {
        assert_eq!(vcpus_of(&facts, lean, most), Ok(most));
        assert!(vcpus_of(&facts, lean, most + 1).is_err());
    }
    let error = vcpus_of(&facts, Lean::Off, 300).unwrap_err();
    assert!(error.to_string().starts_with("vcpus=300: "), "{error}");
    assert!(error.to_string().contains("lean=off"), "{error}");
    let PlanError::Config { cure, .. } = error else {
        panic!("{error}")
    };
    assert!(cure.contains("1 to 255 vCPUs, or lean=auto"), "{cure}");
    // Where KVM lacks what they need, no machine has more.
    for narrow in [
        X86_64::typical().with_wide_ids(false),
        X86_64::typical().with_chips(false, true),
    ] {
        for lean in [Lean::Auto, Lean::Off] {
            assert_eq!(vcpus_of(&narrow, lean, 255), Ok(255));
            let (field, cause) = field_and_cause(vcpus_of(&narrow, lean, 256).unwrap_err());
            assert_eq!(
                (field, cause.as_str()),
                ("vcpus".into(), "this host offers 1 to 255 vCPUs")
            );
        }
    }
}

#[test]
fn reserved_ranges_are_disjoint_and_leave_the_kernel_window_alone() {
    let plan = plan_of(8 << 30).unwrap();
    for (index, one) in plan.reserved.iter().enumerate() {
        assert!(!one.range.overlaps(&plan.kernel_window), "{}", one.name);
        assert!(!one.range.overlaps(&plan.mmio_window), "{}", one.name);
        let rest = &plan.reserved[index + 1..];
        assert!(
            rest.iter().all(|other| !one.range.overlaps(&other.range)),
            "{}",
            one.name
        );
    }
}

#[test]
fn boot_areas_are_disjoint_and_in_free_low_ram() {
    let stack = AddressRange::new(ZERO_PAGE.end(), BOOT_STACK - ZERO_PAGE.end());
    let areas = [
        GDT,
        PVH_START_INFO,
        ZERO_PAGE,
        stack,
        PAGE_TABLES,
        CMDLINE,
        EBDA,
    ];
    assert!(areas.windows(2).all(|pair| pair[0].end() <= pair[1].base));
    assert_eq!(EBDA.end(), VIDEO.base);
    assert_eq!(MP_TABLE.end(), HIGH_MEMORY);
}

#[test]
fn the_serial_port_comes_and_goes_with_its_console() {
    let plan_with = |serial| {
        plan(
            &X86_64::typical(),
            &MachineConfig {
                serial,
                ..config(1 << 30)
            },
        )
        .unwrap()
    };
    let with = plan_with(true);
    let uart = with.device(DeviceKind::Uart16550).unwrap();
    assert_eq!(
        (uart.range.base, uart.range.len, uart.irq),
        (0x3F8, 8, Some(4))
    );
    assert_eq!(with.cmdline, "console=ttyS0 reboot=k panic=-1");
    let without = plan_with(false);
    assert_eq!(without.device(DeviceKind::Uart16550), None);
    assert_eq!(without.cmdline, "reboot=k panic=-1");
}

#[test]
fn devices_do_not_share_ports_and_the_power_registers_come_from_the_window() {
    let devices = plan_of(1 << 30).unwrap().devices;
    for (index, one) in devices.iter().enumerate() {
        assert!(
            devices[index + 1..]
                .iter()
                .all(|other| !one.range.overlaps(&other.range))
        );
    }
    let power = devices
        .iter()
        .find(|device| device.kind == DeviceKind::AcpiPower)
        .unwrap();
    assert!(PORT_WINDOW.contains(&power.range));
    assert_eq!(power.range.len, 4);
}

#[test]
fn the_upper_pci_window_is_made_of_what_ram_leaves() {
    let with = |memory| {
        let config = MachineConfig {
            transport: Transport::Pci,
            ..config(memory)
        };
        plan(&X86_64::typical(), &config).unwrap().pci.unwrap()
    };
    let gib = |gib: u64| gib << 30;
    let window = with(gib(1)).window64.unwrap();
    assert_eq!(window, AddressRange::new(FOUR_GIB, gib(32)));
    assert_eq!(with(gib(8)).window64.unwrap().base, gib(9));
    let most = (1 << 46) - HOLE.len;
    assert_eq!(with(most).window64, None);
    assert_eq!(with(most - gib(2)).window64.unwrap().len, gib(2));
}

#[test]
fn a_guest_without_acpi_is_told_of_virtio_devices_on_its_command_line() {
    let with = |append: &str, transport| {
        let config = MachineConfig {
            virtio: vec![arch::VirtioKind::Block; 2],
            transport,
            vcpus: 1,
            cmdline: Cmdline {
                base: Some("console=ttyS0".to_owned()),
                append: Some(append.to_owned()),
            },
            ..config(1 << 30)
        };
        plan(&X86_64::typical(), &config).unwrap()
    };
    let told = with("acpi=off -- single", Transport::Mmio);
    assert_eq!(
        told.cmdline,
        "console=ttyS0 acpi=off virtio_mmio.device=0x1000@0xc0000000:9 \
         virtio_mmio.device=0x1000@0xc0001000:10 -- single"
    );
    assert!(told.remarks[0].contains("CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES"));
    for (append, transport) in [
        ("quiet", Transport::Mmio),
        ("acpi=off acpi=force", Transport::Mmio),
        ("acpi=off", Transport::Pci),
    ] {
        let plan = with(append, transport);
        assert_eq!(plan.cmdline, format!("console=ttyS0 {append}"));
    }
}

#[test]
fn pci_lies_in_the_hole_and_keeps_to_itself() {
    assert!(MMIO_WINDOW.contains(&PCI_WINDOW) && MMIO_WINDOW.contains(&PCI_ECAM));
    assert!(!PCI_WINDOW.overlaps(&PCI_ECAM));
    assert!(!PCI_PORTS.overlaps(&PORT_WINDOW));
}

proptest! {
    #[test]
    fn no_size_breaks_the_layout(pages in any::<u64>()) {
        let memory = pages.wrapping_mul(PAGE_SIZE);
        if plan_of(memory).is_ok() {
            check_ram(memory);
        }
    }
}

#[test]
fn planned_devices_leave_the_beginning_of_the_window_to_the_embedder() {
    for transport in [Transport::Mmio, Transport::Pci] {
        let mut config = config(1 << 30);
        config.virtio = vec![arch::VirtioKind::Block; 2];
        config.transport = transport;
        config.own_window = 0x3000;
        let planned = plan(&X86_64::typical(), &config).unwrap();
        let own = AddressRange::new(HOLE.base, 0x3000);
        let windows = planned.pci.iter().map(|pci| pci.window32);
        let devices = planned.devices.iter();
        let devices = devices.filter(|device| device.space == Space::Mmio);
        for range in devices.map(|device| device.range).chain(windows) {
            assert!(!range.overlaps(&own), "{range:?}");
        }
        if transport == Transport::Mmio {
            let first = planned
                .devices
                .iter()
                .find(|device| device.kind.virtio().is_some());
            assert_eq!(first.unwrap().range.base, own.end());
        }
        for wrong in [1, 17 << 20] {
            config.own_window = wrong;
            let error = plan(&X86_64::typical(), &config).unwrap_err();
            assert_eq!(field_and_cause(error).0, "own-window");
        }
    }
}
