//! What the processor offers: device registers, memory by address, its identity, its counter.

use core::arch::asm;

/// The affinity fields of MPIDR_EL1, by which the device tree and PSCI name a vCPU.
pub const AFFINITY: u64 = 0xff_00ff_ffff;

/// Reads a device's register. The plain form of the load is what a VMM can emulate.
///
/// # Safety
/// The address is a device's register, and reading it breaks no Rust code.
pub unsafe fn register(address: u64) -> u32 {
    let value;
    // SAFETY: as the caller promises.
    unsafe { asm!("ldr {:w}, [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

/// Writes a device's register, likewise.
///
/// # Safety
/// The address is a device's register, and the write breaks no Rust code.
pub unsafe fn set_register(address: u64, value: u32) {
    // SAFETY: as the caller promises.
    unsafe { asm!("str {:w}, [{}]", in(reg) value, in(reg) address, options(nostack)) };
}

/// Memory that others may write: the bytes at a physical address. Address 0 is nobody's.
///
/// # Safety
/// The range is RAM that nobody changes any more, or does not exist: then reading it is an
/// exception, which ends the guest.
pub unsafe fn memory(address: u64, len: u64) -> Option<&'static [u8]> {
    let end = address.checked_add(len)?;
    // SAFETY: without an MMU every address is mapped; the rest is as the caller promises.
    (address != 0 && end <= i64::MAX as u64)
        .then(|| unsafe { core::slice::from_raw_parts(address as *const u8, len as usize) })
}

/// This vCPU's affinity.
pub fn affinity() -> u64 {
    let mpidr: u64;
    // SAFETY: reading the register changes nothing.
    unsafe { asm!("mrs {}, mpidr_el1", out(reg) mpidr, options(nomem, nostack)) };
    mpidr & AFFINITY
}

/// The virtual counter.
pub fn ticks() -> u64 {
    let count;
    // SAFETY: reading the register changes nothing.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) count, options(nomem, nostack)) };
    count
}

/// Ticks of the counter in a second.
pub fn ticks_per_second() -> u64 {
    let frequency;
    // SAFETY: reading the register changes nothing.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nomem, nostack)) };
    frequency
}

/// Nothing is left to do.
pub fn halt() -> ! {
    loop {
        // SAFETY: interrupts stay masked, the processor sleeps.
        unsafe { asm!("wfi", options(nomem, nostack)) };
    }
}
