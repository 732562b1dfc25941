//! Port accesses wider than a byte, string I/O, and the configuration ports of PCI.

use core::arch::asm;

/// Reads two bytes.
pub fn in16(port: u16) -> u16 {
    let value;
    // SAFETY: reading a port does not touch memory.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack)) };
    value
}

/// Reads four bytes.
pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: reading a port does not touch memory.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

/// Writes two bytes.
pub fn out16(port: u16, value: u16) {
    // SAFETY: no device of this machine writes memory.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) };
}

/// Writes four bytes.
pub fn out32(port: u16, value: u32) {
    // SAFETY: no device of this machine writes memory.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}

/// `rep outsb`.
pub fn rep_out8(port: u16, data: &[u8]) {
    // SAFETY: reads exactly the slice.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") data.as_ptr() => _,
            inout("rcx") data.len() => _, options(nostack));
    }
}

/// `rep insb`.
pub fn rep_in8(port: u16, data: &mut [u8]) {
    // SAFETY: writes exactly the slice.
    unsafe {
        asm!("rep insb", in("dx") port, inout("rdi") data.as_mut_ptr() => _,
            inout("rcx") data.len() => _, options(nostack));
    }
}

/// `rep insw`.
pub fn rep_in16(port: u16, data: &mut [u16]) {
    // SAFETY: writes exactly the slice.
    unsafe {
        asm!("rep insw", in("dx") port, inout("rdi") data.as_mut_ptr() => _,
            inout("rcx") data.len() => _, options(nostack));
    }
}

/// The configuration ports: address, data (PCI Local Bus Specification 3.0, 3.2.2.3.2).
pub const PCI_ADDRESS: u16 = 0xcf8;
pub const PCI_DATA: u16 = 0xcfc;

/// Connects the data port to a register of a slot's first function on bus 0.
pub fn pci_select(slot: u8, register: u8) {
    out32(
        PCI_ADDRESS,
        1 << 31 | u32::from(slot) << 11 | u32::from(register),
    );
}
