//! PIC, local APIC (xAPIC mode) and I/O APIC (Intel SDM volume 3, chapter 11; 82093AA data sheet).

use core::ptr;

use crate::machine::{port_out, u32_at};
use crate::{acpi, info, mp, option};

/// The vector of spurious interrupts: its low four bits are ones on old processors.
pub const SPURIOUS: u8 = 63;

const LOCAL: u64 = 0xfee0_0000;
const ID: u64 = 0x20;
const EOI: u64 = 0xb0;
const SPURIOUS_VECTOR: u64 = 0xf0;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const TIMER: u64 = 0x320;
const TIMER_INITIAL: u64 = 0x380;
const TIMER_DIVIDE: u64 = 0x3e0;
const ENABLED: u32 = 1 << 8;
const PENDING: u32 = 1 << 12;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 1 << 18;
const MASKED: u32 = 1 << 16;

/// Masks every line of both PICs.
pub fn mask_pic() {
    port_out(0x21, 0xff);
    port_out(0xa1, 0xff);
}

fn read(register: u64) -> u32 {
    // SAFETY: the local APIC is mapped, uncached; its registers are aligned.
    unsafe { ptr::read_volatile((LOCAL + register) as *const u32) }
}

fn write(register: u64, value: u32) {
    // SAFETY: as for `read`.
    unsafe { ptr::write_volatile((LOCAL + register) as *mut u32, value) };
}

/// Switches the local APIC on.
pub fn enable() {
    write(SPURIOUS_VECTOR, ENABLED | u32::from(SPURIOUS));
}

/// This vCPU's id.
pub fn id() -> u32 {
    read(ID) >> 24
}

pub(crate) fn end_of_interrupt() {
    write(EOI, 0);
}

/// Sends an inter-processor interrupt.
pub fn send(target: u32, command: u32) {
    write(ICR_HIGH, target << 24);
    write(ICR_LOW, command);
    while read(ICR_LOW) & PENDING != 0 {}
}

/// Starts the timer: an interrupt every `count` cycles of the APIC's bus clock (KVM's runs at
/// 1 GHz).
pub fn start_timer(vector: u8, count: u32) {
    write(TIMER_DIVIDE, 0b1011); // by 1
    write(TIMER, PERIODIC | u32::from(vector));
    write(TIMER_INITIAL, count);
}

/// Lets the timer end once, after `count` cycles.
pub fn start_one_shot(vector: u8, count: u32) {
    write(TIMER_DIVIDE, 0b1011); // by 1
    write(TIMER, vector.into());
    write(TIMER_INITIAL, count);
}

/// Lets the timer end when the time stamp counter has a value, which is written to a register of the
/// processor.
pub fn expect_deadline(vector: u8) {
    write(TIMER, DEADLINE | u32::from(vector));
}

/// Stops the timer.
pub fn stop_timer() {
    write(TIMER, MASKED);
    write(TIMER_INITIAL, 0);
}

/// Where a message to this vCPU is written (Intel SDM volume 3, 11.11.1).
pub fn message_address() -> u32 {
    LOCAL as u32 | id() << 12
}

/// The address of the I/O APIC that has GSI 0, from the MADT.
fn io_apic() -> u64 {
    let madt = acpi::find(info().rsdp, b"APIC").expect("no MADT");
    let mut rest = &madt[44..];
    while let [kind, len, ..] = *rest {
        let structure = &rest[..usize::from(len)];
        if kind == 1 && u32_at(structure, 8) == Some(0) {
            return u32_at(structure, 4).expect("a whole structure").into();
        }
        rest = &rest[structure.len()..];
    }
    panic!("the MADT names no I/O APIC")
}

/// Routes a GSI, edge triggered and active high, to a vector of this vCPU.
pub fn route(gsi: u32, vector: u8) {
    route_to(gsi, id(), vector.into());
}

/// Routes a GSI, edge triggered and active high, to an APIC with at most 15 bits of id; `mode` has the vector
/// and the delivery mode.
pub fn route_to(gsi: u32, id: u32, mode: u32) {
    // A guest that is told to do without ACPI does.
    let (base, gsi) = match option("acpi") {
        Some("off") => mp::io_apic(gsi),
        _ => (io_apic(), gsi),
    };
    let write = |register: u32, value: u32| {
        // SAFETY: the I/O APIC is mapped, uncached: index register, then data register.
        unsafe {
            ptr::write_volatile(base as *mut u32, register);
            ptr::write_volatile((base + 0x10) as *mut u32, value);
        }
    };
    // KVM_FEATURE_MSI_EXT_DEST_ID: bits 14:8 of the id are below bits 7:0.
    write(0x10 + 2 * gsi + 1, id << 24 | id >> 8 << 17);
    write(0x10 + 2 * gsi, mode);
}
