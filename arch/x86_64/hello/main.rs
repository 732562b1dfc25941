//! The built-in guest: says what machine it found, then powers off, or resets where it cannot.
//!
//! Everything it prints comes from the machine: the vCPUs are those that ran, the memory is the
//! sum of the memory map. It runs without interrupts and heap.

#![no_std]
#![no_main]

mod acpi;
mod cpus;
#[path = "../../hello/digits.rs"]
mod digits;
mod entry;
mod machine;
#[path = "../../hello/mem.rs"]
mod mem;
mod serial;
mod start_info;

use machine::{halt, port_out};
use serial::Serial;
use start_info::{RAM, Range, StartInfo};

/// SLP_EN of the sleep control register (ACPI 6.5, 4.8.3.7); SLP_TYP starts at bit 2.
const SLEEP_ENABLE: u8 = 1 << 5;
/// The keyboard controller's command port, and its command that pulses the reset line.
const KEYBOARD_CONTROLLER: u16 = 0x64;
const RESET: u8 = 0xfe;
const MIB: u64 = 1 << 20;

extern "C" fn main(start_info: u64) -> ! {
    let mut serial = Serial::new();
    let Some(info) = StartInfo::read(start_info) else {
        serial.text(b"hello: no hvm_start_info where EBX points\n");
        halt()
    };
    let madt = acpi::find(info.rsdp, b"APIC").unwrap_or_default();
    let ids = acpi::apic_ids(madt);
    let described = ids.clone().count() as u32;
    let running = if described > 1 {
        let page = info.free_low_page();
        page.map_or(1, |page| cpus::start(ids, page))
    } else {
        1
    };
    let usable = || info.memory_map().filter(|range| range.kind == RAM);
    // The legacy area below 1 MiB is missing from the sum: round up.
    let mib = usable().map(|range| range.len).sum::<u64>().div_ceil(MIB);

    serial
        .text(b"hello from vmm-reference: x86_64, ")
        .decimal(running.into())
        .text(b" vCPUs, ")
        .decimal(mib)
        .text(b" MiB\n");
    if running != described {
        serial
            .text(b"but the ACPI tables describe ")
            .decimal(described.into())
            .text(b" vCPUs\n");
    }
    usable().for_each(|range| print_range(&mut serial, range));
    serial
        .text(b"command line: ")
        .text(info.cmdline)
        .text(b"\n");
    power_off(info.rsdp);
    serial.text(b"hello: no way to power off, so a reset\n");
    port_out(KEYBOARD_CONTROLLER, RESET);
    halt()
}

fn print_range(serial: &mut Serial, range: Range) {
    let last = range.base.wrapping_add(range.len).wrapping_sub(1);
    serial.text(b"  ").hex(range.base).text(b"-").hex(last);
    serial.text(b" usable\n");
}

/// Enters S5 through the sleep control register; returns when there is none or it does nothing.
fn power_off(rsdp: u64) {
    let register = acpi::find(rsdp, b"FACP")
        .and_then(|fadt| Some((acpi::sleep_control(fadt)?, acpi::s5_type(fadt)?)));
    match register {
        Some(((true, address), s5)) => port_out(address as u16, SLEEP_ENABLE | s5 << 2),
        Some(((false, address), s5)) => machine::write(address, SLEEP_ENABLE | s5 << 2),
        None => {}
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    Serial::new().text(b"hello: panic\n");
    halt()
}
