//! Text on the console, without formatting: that would be most of the guest.

use core::fmt;

use crate::digits::{digits, room};
pub use crate::serial::text;

/// Prints a number in decimal.
pub fn decimal(number: u64) {
    text(digits(&mut room(), number, 10));
}

/// Prints a number in hexadecimal.
pub fn hex(number: u64) {
    text(b"0x");
    text(digits(&mut room(), number, 16));
}

/// For formatted text, which only a panic has.
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, string: &str) -> fmt::Result {
        text(string.as_bytes());
        Ok(())
    }
}
