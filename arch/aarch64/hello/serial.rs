//! Bytes to a PL011 (Arm DDI 0183), polled.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine::{register, set_register};

const DR: u64 = 0;
const FR: u64 = 0x18;
const CR: u64 = 0x30;
/// Flags: the transmitter takes no byte.
const TXFF: u32 = 1 << 5;
/// Control: the UART and its transmitter are on.
const UARTEN: u32 = 1;
const TXE: u32 = 1 << 8;
/// How often a transmitter that is not ready is asked.
const PATIENCE: u32 = 10_000;

/// Where the registers are; 0 means that there is no UART.
static BASE: AtomicU64 = AtomicU64::new(0);

/// Switches the UART with these registers on and prints there from now on.
///
/// # Safety
/// They are a PL011's.
pub unsafe fn open(base: u64) {
    // SAFETY: as the caller promises; a UART does not touch memory.
    unsafe { set_register(base + CR, UARTEN | TXE) };
    BASE.store(base, Ordering::Relaxed);
}

/// Prints a byte, where there is a UART that takes it.
pub fn byte(byte: u8) {
    let base = BASE.load(Ordering::Relaxed);
    if base == 0 {
        return;
    }
    for _ in 0..PATIENCE {
        // SAFETY: `open` was promised a PL011.
        unsafe {
            if register(base + FR) & TXFF == 0 {
                set_register(base + DR, byte.into());
                return;
            }
        }
    }
}
