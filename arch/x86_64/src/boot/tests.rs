use arch::{Cmdline, GuestKernel, KernelPlacement, Lean, MachineConfig, Platform, Transport};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::e820;

/// A machine with something in guest memory.
struct Booted {
    ram: GuestRam,
    info: BootInfo,
    plan: arch::MachinePlan,
}

impl Booted {
    fn bytes<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    fn u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.bytes(address))
    }

    fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.bytes(address))
    }

    fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.bytes(address))
    }
}

const INITRD: AddressRange = AddressRange::new(0x180_0000, 0x12345);

fn kernel(protocol: Protocol, setup_header: Vec<u8>) -> KernelPlacement {
    KernelPlacement {
        entry: 0x100_0200,
        range: AddressRange::new(0x100_0000, 0x10_0000),
        initrd_limit: None,
        protocol,
        setup_header,
    }
}

/// A setup header with a version and a command line limit.
fn setup_header(version: u16, cmdline_size: u32) -> Vec<u8> {
    let mut header = vec![0x5A; 0x26C - 0x1F1];
    header[0x206 - 0x1F1..][..2].copy_from_slice(&version.to_le_bytes());
    header[0x238 - 0x1F1..][..4].copy_from_slice(&cmdline_size.to_le_bytes());
    header
}

fn boot_with(
    kernel: &KernelPlacement,
    initrd: Option<AddressRange>,
    cmdline: &str,
) -> Result<Booted, BootError> {
    let facts = X86_64::typical();
    let config = MachineConfig {
        lean: Lean::Off,
        kernel: GuestKernel::Unknown,
        vmgenid: true,
        own_window: 0,
        keyboard: false,
        announce_virtio: false,
        memory: 32 << 20,
        vcpus: 2,
        cmdline: Cmdline {
            base: Some(cmdline.to_owned()),
            append: None,
        },
        serial: true,
        virtio: Vec::new(),
        transport: Transport::Mmio,
    };
    let plan = facts.setup_memory_layout(&config).unwrap();
    let irq_chip = facts.irq_chip(&plan).unwrap();
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap();
    let request = BootRequest {
        plan: &plan,
        irq_chip: &irq_chip,
        kernel,
        initrd,
        seed: &[0; arch::SEED],
    };
    let info = facts.build_boot_info(&request, &ram)?;
    Ok(Booted { ram, info, plan })
}

#[test]
fn an_elf_kernel_gets_a_minimal_setup_header_in_its_zero_page() {
    let kernel = kernel(Protocol::Linux64, Vec::new());
    let booted = boot_with(&kernel, Some(INITRD), "quiet").unwrap();
    assert_eq!(booted.info.arguments[0], 0x7000);
    assert_eq!(booted.u16(0x7000 + 0x1FE), 0xAA55);
    assert_eq!(&booted.bytes::<4>(0x7000 + 0x202), b"HdrS");
    assert_eq!(booted.bytes::<1>(0x7000 + 0x210), [0xFF]);
    assert_eq!(booted.u64(0x7000 + 0x70), 0xE_0000);
    assert_eq!(u64::from(booted.u32(0x7000 + 0x218)), INITRD.base);
    assert_eq!(u64::from(booted.u32(0x7000 + 0x21C)), INITRD.len);
    assert_eq!(booted.u64(0x7000 + 0xC0), 0);
    let cmdline = u64::from(booted.u32(0x7000 + 0x228));
    assert_eq!(&booted.bytes::<6>(cmdline), b"quiet\0");
    assert_eq!(booted.u32(0x7000 + 0x238), 2047);
}

#[test]
fn the_zero_page_has_the_memory_map() {
    let booted = boot_with(&kernel(Protocol::Linux64, Vec::new()), None, "").unwrap();
    let entries = e820(&booted.plan);
    assert_eq!(
        usize::from(booted.bytes::<1>(0x7000 + 0x1E8)[0]),
        entries.len()
    );
    for (index, entry) in entries.iter().enumerate() {
        let address = 0x7000 + 0x2D0 + 20 * index as u64;
        assert_eq!(booted.u64(address), entry.range.base);
        assert_eq!(booted.u64(address + 8), entry.range.len);
        assert_eq!(booted.u32(address + 16), entry.kind as u32);
    }
    assert_eq!(booted.u32(0x7000 + 0x218), 0);
}

#[test]
fn a_bzimage_keeps_its_setup_header_except_what_the_loader_fills_in() {
    let kernel = kernel(Protocol::Linux64, setup_header(0x020F, 100));
    let booted = boot_with(&kernel, None, "quiet").unwrap();
    assert_eq!(booted.bytes::<1>(0x7000 + 0x1F1), [0x5A]);
    assert_eq!(booted.u16(0x7000 + 0x206), 0x020F);
    assert_eq!(booted.bytes::<1>(0x7000 + 0x210), [0xFF]);
    assert_eq!(booted.u32(0x7000 + 0x214), 0x100_0000);
    assert_eq!(booted.u32(0x7000 + 0x238), 100);
    // The byte before the header is the sentinel that has to stay zero.
    assert_eq!(booted.bytes::<1>(0x7000 + 0x1EF), [0]);
}

#[test]
fn a_setup_header_longer_than_its_space_is_refused() {
    let kernel = kernel(Protocol::Linux64, vec![0; 0xA0]);
    assert!(matches!(
        boot_with(&kernel, None, ""),
        Err(BootError::TooLarge { .. })
    ));
}

#[test]
fn the_command_line_limit_is_the_kernels_own() {
    for (header, limit) in [
        (Vec::new(), 2047),
        (setup_header(0x020F, 100), 100),
        (setup_header(0x020F, u32::MAX), 0xFFFF),
        (setup_header(0x0205, 100), 255),
        (vec![0; 3], 255),
    ] {
        let kernel = kernel(Protocol::Linux64, header);
        let fits = boot_with(&kernel, None, &"x".repeat(limit)).unwrap();
        let block = fits
            .info
            .placed
            .iter()
            .find(|block| block.name == "command line");
        assert_eq!(block.unwrap().range.len, limit as u64 + 1);
        let error = boot_with(&kernel, None, &"x".repeat(limit + 1))
            .err()
            .unwrap();
        assert!(
            error.to_string().contains(&format!("at most {limit}")),
            "{error}"
        );
    }
}

#[test]
fn a_command_line_with_a_zero_byte_is_refused() {
    let kernel = kernel(Protocol::Linux64, Vec::new());
    assert!(boot_with(&kernel, None, "a\0b").is_err());
}

#[test]
fn pvh_start_info_names_command_line_initrd_root_pointer_and_memory_map() {
    let kernel = kernel(Protocol::Pvh, Vec::new());
    let booted = boot_with(&kernel, Some(INITRD), "quiet").unwrap();
    let info = booted.info.arguments[0];
    assert_eq!(booted.u32(info), 0x336E_C578);
    assert_eq!(booted.u32(info + 4), 1);
    assert_eq!(booted.u32(info + 12), 1);
    let module = booted.u64(info + 16);
    assert_eq!(booted.u64(module), INITRD.base);
    assert_eq!(booted.u64(module + 8), INITRD.len);
    assert_eq!(booted.u64(module + 16), 0);
    assert_eq!(&booted.bytes::<6>(booted.u64(info + 24)), b"quiet\0");
    assert_eq!(booted.u64(info + 32), 0xE_0000);
    let entries = e820(&booted.plan);
    assert_eq!(booted.u32(info + 48) as usize, entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let address = booted.u64(info + 40) + 24 * index as u64;
        assert_eq!(booted.u64(address), entry.range.base);
        assert_eq!(booted.u64(address + 8), entry.range.len);
        assert_eq!(booted.u32(address + 16), entry.kind as u32);
    }
}

#[test]
fn without_an_initrd_pvh_has_no_modules() {
    let booted = boot_with(&kernel(Protocol::Pvh, Vec::new()), None, "").unwrap();
    assert_eq!(booted.u32(booted.info.arguments[0] + 12), 0);
    assert_eq!(booted.u64(booted.info.arguments[0] + 16), 0);
}

#[test]
fn everything_placed_is_in_low_ram_and_disjoint() {
    for protocol in [Protocol::Linux64, Protocol::Pvh] {
        let booted = boot_with(&kernel(protocol, Vec::new()), None, "quiet").unwrap();
        let placed = &booted.info.placed;
        for (index, one) in placed.iter().enumerate() {
            assert!(one.range.end() <= map::HIGH_MEMORY, "{}", one.name);
            let rest = &placed[index + 1..];
            assert!(
                rest.iter().all(|other| !one.range.overlaps(&other.range)),
                "{}",
                one.name
            );
        }
    }
}

#[test]
fn the_gdt_lies_where_the_register_points() {
    let booted = boot_with(&kernel(Protocol::Pvh, Vec::new()), None, "").unwrap();
    let gdt = booted.bytes::<{ registers::GDT_SIZE }>(map::GDT.base);
    assert_eq!(gdt, registers::gdt(Protocol::Pvh));
}

#[test]
fn a_device_tree_kernel_is_refused() {
    assert!(boot_with(&kernel(Protocol::DeviceTree, Vec::new()), None, "").is_err());
}
