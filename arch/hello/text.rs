//! Text on the console, without formatting: that would be most of the guest.

use core::fmt;

use crate::serial::byte;

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

/// Prints a number in hexadecimal.
pub fn hex(number: u64) {
    text(b"0x");
    hex_digits(number);
}

fn hex_digits(number: u64) {
    if number >= 16 {
        hex_digits(number >> 4);
    }
    let digit = number as u8 & 0xf;
    byte(if digit < 10 {
        b'0' + digit
    } else {
        b'a' - 10 + digit
    });
}

/// For formatted text, which only a panic has.
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, string: &str) -> fmt::Result {
        text(string.as_bytes());
        Ok(())
    }
}
