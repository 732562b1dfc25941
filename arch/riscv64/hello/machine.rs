//! What the processor offers: device registers, its number, its counter.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::fdt::Fdt;

/// Set in an answer, so that the first hart's is none of 0.
pub const ANSWERED: u64 = 1 << 63;

/// The number of the hart that runs this.
static HART: AtomicU64 = AtomicU64::new(0);
/// Ticks of the counter in a second.
static FREQUENCY: AtomicU64 = AtomicU64::new(0);

/// Takes note of what a program cannot ask the processor for.
pub fn open(hart: u64, tree: &Fdt<'_>) {
    HART.store(hart, Ordering::Relaxed);
    // The binding riscv/cpus.yaml.
    let frequency = tree
        .find(b"/cpus")
        .and_then(|cpus| cpus.property(b"timebase-frequency")?.try_into().ok())
        .map_or(0, u32::from_be_bytes);
    FREQUENCY.store(frequency.into(), Ordering::Relaxed);
}

/// Reads a device's register of one byte. The plain form of the load is what a VMM can emulate.
///
/// # Safety
/// The address is a device's register, and reading it breaks no Rust code.
pub unsafe fn register(address: u64) -> u8 {
    let value: u64;
    // SAFETY: as the caller promises.
    unsafe { asm!("lbu {}, 0({})", out(reg) value, in(reg) address, options(nostack)) };
    value as u8
}

/// Writes a device's register of one byte, likewise.
///
/// # Safety
/// The address is a device's register, and the write breaks no Rust code.
pub unsafe fn set_register(address: u64, value: u8) {
    // SAFETY: as the caller promises.
    unsafe { asm!("sb {}, 0({})", in(reg) u64::from(value), in(reg) address, options(nostack)) };
}

/// This vCPU's number.
pub fn id() -> u64 {
    HART.load(Ordering::Relaxed)
}

/// The vCPU that gave this answer.
pub fn id_in(answer: u64) -> u64 {
    answer & !ANSWERED
}

/// The counter.
pub fn ticks() -> u64 {
    let count;
    // SAFETY: reading the counter changes nothing.
    unsafe { asm!("rdtime {}", out(reg) count, options(nomem, nostack)) };
    count
}

/// Ticks of the counter in a second.
pub fn ticks_per_second() -> u64 {
    FREQUENCY.load(Ordering::Relaxed)
}

/// Nothing is left to do.
pub fn halt() -> ! {
    loop {
        // SAFETY: interrupts stay masked, the processor sleeps.
        unsafe { asm!("wfi", options(nomem, nostack)) };
    }
}
