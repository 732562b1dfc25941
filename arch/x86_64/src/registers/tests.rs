use arch::{Cmdline, GuestKernel, Lean, MachineConfig, Platform, Transport};

use super::*;
use crate::X86_64;

fn boot(protocol: Protocol) -> BootInfo {
    BootInfo {
        entry: 0x100_0200,
        arguments: [0x7000, 0, 0, 0],
        protocol,
        placed: Vec::new(),
    }
}

/// Decodes a descriptor as the processor does: base, limit in bytes, access byte, flags nibble.
fn decode(raw: u64) -> (u64, u64, u64, u64) {
    let base = ((raw >> 16) & 0xFF_FFFF) | (raw >> 56 << 24);
    let flags = (raw >> 52) & 0xF;
    let limit = (raw & 0xFFFF) | ((raw >> 32) & 0xF_0000);
    let limit = if flags & 8 == 0 {
        limit
    } else {
        (limit << 12) | 0xFFF
    };
    (base, limit, (raw >> 40) & 0xFF, flags)
}

fn descriptor_at(gdt: &[u8], selector: u16) -> u64 {
    let start = usize::from(selector);
    u64::from_le_bytes(gdt[start..start + 8].try_into().unwrap())
}

#[test]
fn the_64_bit_gdt_decodes_to_flat_code_data_and_a_busy_tss() {
    let gdt = gdt(Protocol::Linux64);
    assert_eq!(descriptor_at(&gdt, 0), 0);
    assert_eq!(
        decode(descriptor_at(&gdt, 0x10)),
        (0, 0xFFFF_FFFF, 0x9B, 0xA)
    );
    assert_eq!(
        decode(descriptor_at(&gdt, 0x18)),
        (0, 0xFFFF_FFFF, 0x93, 0xC)
    );
    assert_eq!(decode(descriptor_at(&gdt, 0x20)), (0, 0x67, 0x8B, 0));
    assert_eq!(descriptor_at(&gdt, 0x28), 0);
}

#[test]
fn the_pvh_code_segment_is_32_bit() {
    let gdt = gdt(Protocol::Pvh);
    assert_eq!(
        decode(descriptor_at(&gdt, 0x10)),
        (0, 0xFFFF_FFFF, 0x9B, 0xC)
    );
}

#[test]
fn a_base_is_split_over_the_descriptor() {
    let segment = Segment {
        base: 0x1234_5678,
        ..TASK
    };
    assert_eq!(decode(segment.descriptor()).0, 0x1234_5678);
}

#[test]
fn the_linux_entry_is_in_long_mode_with_the_zero_page_in_rsi() {
    let registers = BootRegisters::new(&boot(Protocol::Linux64));
    assert_eq!(
        registers.regs,
        GeneralRegisters {
            rip: 0x100_0200,
            rsp: 0x8FF0,
            rbx: 0,
            rsi: 0x7000,
            rflags: 2,
        }
    );
    assert_eq!(registers.code.selector, 0x10);
    assert_eq!(registers.data.selector, 0x18);
    assert_eq!(registers.code.mode, SegmentMode::Bits64);
    assert_eq!(
        (registers.cr0, registers.cr3, registers.cr4, registers.efer),
        (0x8000_0011, 0x9000, 0x20, 0x500)
    );
}

#[test]
fn the_pvh_entry_is_flat_32_bit_with_start_info_in_ebx() {
    let registers = BootRegisters::new(&boot(Protocol::Pvh));
    assert_eq!(
        registers.regs,
        GeneralRegisters {
            rip: 0x100_0200,
            rsp: 0,
            rbx: 0x7000,
            rsi: 0,
            rflags: 2,
        }
    );
    assert_eq!(registers.code.mode, SegmentMode::Bits32);
    assert_eq!(
        (registers.cr0, registers.cr3, registers.cr4, registers.efer),
        (0x11, 0, 0, 0)
    );
}

#[test]
fn the_gdt_register_covers_the_table_and_the_table_its_area() {
    let registers = BootRegisters::new(&boot(Protocol::Linux64));
    assert_eq!(registers.gdt.base, map::GDT.base);
    assert_eq!(usize::from(registers.gdt.limit) + 1, GDT_SIZE);
    assert!(GDT_SIZE as u64 <= map::GDT.len);
}

#[test]
fn only_the_boot_vcpu_gets_boot_registers() {
    let facts = X86_64::typical();
    let config = MachineConfig {
        lean: Lean::Off,
        kernel: GuestKernel::Unknown,
        vmgenid: true,
        own_window: 0,
        keyboard: false,
        announce_virtio: false,
        memory: 1 << 30,
        vcpus: 2,
        cmdline: Cmdline::default(),
        serial: true,
        virtio: Vec::new(),
        transport: Transport::Mmio,
    };
    let plan = facts.setup_memory_layout(&config).unwrap();
    let info = boot(Protocol::Linux64);
    let first = facts.configure_vcpu(0, &plan, Some(&info)).unwrap();
    let second = facts.configure_vcpu(1, &plan, None).unwrap();
    assert!(first.boot.is_some());
    assert_eq!(second.boot, None);
    for setup in [first, second] {
        assert_eq!(
            (setup.lint0, setup.lint1),
            (DeliveryMode::ExtInt, DeliveryMode::Nmi)
        );
        assert_eq!((setup.fpu.fcw, setup.fpu.mxcsr), (0x37F, 0x1F80));
        assert!(setup.msrs.contains(&Msr {
            index: 0x2FF,
            data: 0x806
        }));
        assert!(setup.msrs.contains(&Msr {
            index: 0x1A0,
            data: 1
        }));
    }
}
