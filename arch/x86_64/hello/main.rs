//! The built-in guest: says what machine it found, then powers off, or resets where it cannot.
//!
//! Everything it prints comes from the machine: the vCPUs are those that ran, the memory is the
//! sum of the memory map. It runs without interrupts and heap.

#![no_std]
#![no_main]

mod acpi;
mod cpus;
mod entry;
mod machine;
#[path = "../../hello/mem.rs"]
mod mem;
mod serial;
mod start_info;

use machine::{halt, port_out};
use serial::{decimal, hex, text};
use start_info::{RAM, Range, StartInfo};

/// SLP_EN of the sleep control register (ACPI 6.5, 4.8.3.7); SLP_TYP starts at bit 2.
const SLEEP_ENABLE: u8 = 1 << 5;
/// The keyboard controller's command port, and its command that pulses the reset line.
const KEYBOARD_CONTROLLER: u16 = 0x64;
const RESET: u8 = 0xfe;
const MIB: u64 = 1 << 20;

extern "C" fn main(start_info: u64) -> ! {
    let Some(info) = StartInfo::read(start_info) else {
        text(b"hello: no hvm_start_info where EBX points\n");
        halt()
    };
    let madt = acpi::find(info.rsdp, b"APIC").unwrap_or_default();
    let ids = acpi::apic_ids(madt);
    let described = ids.clone().count() as u32;
    let running = info
        .free_low_page()
        .map_or(1, |page| cpus::start(ids, page));
    let usable = info.memory_map().filter(|range| range.kind == RAM);
    // The legacy area below 1 MiB is missing from the sum: round up.
    let mib = usable.map(|range| range.len).sum::<u64>().div_ceil(MIB);

    text(b"hello from vmm-reference: x86_64, ");
    decimal(running.into());
    text(b" vCPUs, ");
    decimal(mib);
    text(b" MiB\n");
    if running != described {
        text(b"but the ACPI tables describe ");
        decimal(described.into());
        text(b" vCPUs\n");
    }
    info.memory_map().for_each(print_range);
    text(b"command line: ");
    text(info.cmdline);
    text(b"\n");
    power_off(info.rsdp);
    text(b"hello: no way to power off, so a reset\n");
    port_out(KEYBOARD_CONTROLLER, RESET);
    halt()
}

fn print_range(range: Range) {
    text(b"  ");
    hex(range.base);
    text(b"-");
    hex(range.base.wrapping_add(range.len).wrapping_sub(1));
    match range.kind {
        RAM => text(b" usable"),
        2 => text(b" reserved"),
        3 => text(b" ACPI data"),
        4 => text(b" ACPI NVS"),
        other => {
            text(b" type ");
            decimal(other.into());
        }
    }
    text(b"\n");
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
    text(b"hello: panic\n");
    halt()
}
