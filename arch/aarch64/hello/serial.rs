//! Text on a PL011 (Arm DDI 0183), polled.

use core::fmt;
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

fn byte(byte: u8) {
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

/// Prints text as it is.
pub fn text(text: &[u8]) {
    for &character in text {
        byte(character);
    }
}

/// Prints a number in decimal.
pub fn decimal(number: u64) {
    if number >= 10 {
        decimal(number / 10);
    }
    byte(b'0' + (number % 10) as u8);
}

/// Prints a number with 16 hexadecimal digits.
pub fn hex(number: u64) {
    text(b"0x");
    for shift in (0..16).rev() {
        let digit = (number >> (4 * shift)) as u8 & 0xf;
        byte(if digit < 10 {
            b'0' + digit
        } else {
            b'a' - 10 + digit
        });
    }
}

/// For formatted text, which only a panic has.
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, string: &str) -> fmt::Result {
        text(string.as_bytes());
        Ok(())
    }
}
