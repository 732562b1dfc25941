//! What the processor offers: device registers, its identity, its counter.

use core::arch::asm;

/// The affinity fields of MPIDR_EL1, by which the device tree and PSCI name a vCPU.
const AFFINITY: u64 = 0xff_00ff_ffff;

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

/// This vCPU's number: its affinity.
pub fn id() -> u64 {
    let mpidr: u64;
    // SAFETY: reading the register changes nothing.
    unsafe { asm!("mrs {}, mpidr_el1", out(reg) mpidr, options(nomem, nostack)) };
    id_in(mpidr)
}

/// The vCPU that answers with its MPIDR_EL1, of which bit 31 is 1.
pub fn id_in(answer: u64) -> u64 {
    answer & AFFINITY
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
