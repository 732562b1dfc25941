//! Text on COM1, polled.

use crate::machine::{port_in, port_out};

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
/// Line status: the transmitter takes a byte.
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// How often a transmitter that is not ready is asked. Without a UART every bit reads as 1.
const PATIENCE: u32 = 10_000;

fn byte(byte: u8) {
    for _ in 0..PATIENCE {
        if port_in(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
            port_out(COM1, byte);
            return;
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
