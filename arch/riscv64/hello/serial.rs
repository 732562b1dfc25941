//! Bytes to a 16550A (its data sheet, PC16550D), polled.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine::{register, set_register};

const THR: u64 = 0;
const LSR: u64 = 5;
/// Line status: the transmitter takes a byte.
const THRE: u8 = 1 << 5;
/// How often a transmitter that is not ready is asked.
const PATIENCE: u32 = 10_000;

/// Where the registers are; 0 means that there is no UART.
static BASE: AtomicU64 = AtomicU64::new(0);

/// Prints on the UART with these registers from now on.
///
/// # Safety
/// They are a 16550A's, one byte each.
pub unsafe fn open(base: u64) {
    BASE.store(base, Ordering::Relaxed);
}

/// Prints a byte, where there is a UART that takes it.
pub fn byte(byte: u8) {
    let base = BASE.load(Ordering::Relaxed);
    if base == 0 {
        return;
    }
    for _ in 0..PATIENCE {
        // SAFETY: `open` was promised a UART.
        unsafe {
            if register(base + LSR) & THRE != 0 {
                set_register(base + THR, byte);
                return;
            }
        }
    }
}
