//! What the processor offers: ports, model-specific registers, memory by address.

use core::arch::asm;

/// The end of the memory that the page tables map from 0 on.
const MAPPED: u64 = 1 << 30;
/// The GiB of devices that the page tables map as well.
pub const DEVICES: core::ops::Range<u64> = 0xc000_0000..0x1_0000_0000;

/// Reads a port.
pub fn port_in(port: u16) -> u8 {
    let value;
    // SAFETY: reading a port does not touch memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// Writes a port.
pub fn port_out(port: u16, value: u8) {
    // SAFETY: no device of this machine writes memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Writes bytes to a port, one after the other.
pub fn port_out_all(port: u16, bytes: &[u8]) {
    // SAFETY: the bytes are there; no device of this machine writes memory, and the direction flag is clear
    // (System V ABI).
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _, inout("rcx") bytes.len() => _,
            options(readonly, nostack, preserves_flags));
    }
}

/// Reads a model-specific register.
///
/// # Safety
/// The processor has the register.
pub unsafe fn msr_read(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: as the caller promises.
    unsafe { asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The processor has the register, takes the value, and the write breaks no Rust code.
pub unsafe fn msr_write(index: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: as the caller promises.
    unsafe { asm!("wrmsr", in("ecx") index, in("eax") low, in("edx") high, options(nostack)) };
}

/// The time stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: every 64-bit processor has the counter, and CR4.TSD is clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Memory that others may write: the bytes at a physical address, when all of them are mapped.
/// Address 0 is nobody's.
pub fn memory(address: u64, len: u64) -> Option<&'static [u8]> {
    let end = address.checked_add(len)?;
    // SAFETY: the range is mapped one to one. What lies there (the image, boot information, tables
    // in RAM) does not change while this guest looks at it.
    (address != 0 && end <= MAPPED)
        .then(|| unsafe { core::slice::from_raw_parts(address as *const u8, len as usize) })
}

/// Writes a byte to a device's memory, when the page tables map it.
pub fn write(address: u64, value: u8) {
    if address < MAPPED || DEVICES.contains(&address) {
        // SAFETY: mapped, and the caller names a device's register.
        unsafe { core::ptr::write_volatile(address as *mut u8, value) };
    }
}

/// The bytes at an offset.
pub fn number<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// A little-endian 32-bit number.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    number(bytes, offset).map(u32::from_le_bytes)
}

/// A little-endian 64-bit number.
pub fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    number(bytes, offset).map(u64::from_le_bytes)
}

/// Nothing is left to do.
pub fn halt() -> ! {
    loop {
        // SAFETY: interrupts stay off, the processor sleeps.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
