//! COM1: printing, and the registers for tests of the UART itself.

use core::fmt::{self, Write};

use crate::machine::{port_in, port_out};

/// The first port: data.
pub const DATA: u16 = 0x3f8;
/// Interrupt enable.
pub const INTERRUPTS: u16 = DATA + 1;
/// FIFO control.
pub const FIFO: u16 = DATA + 2;
/// Modem control.
pub const MODEM: u16 = DATA + 4;
/// Line status.
pub const STATUS: u16 = DATA + 5;
/// Scratch: keeps what is written.
pub const SCRATCH: u16 = DATA + 7;
/// Line status: there is input.
pub const READY: u8 = 1 << 0;
/// Line status: the transmitter takes a byte.
const EMPTY: u8 = 1 << 5;

struct Com1;

impl Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(byte);
        Ok(())
    }
}

/// Sends a byte.
pub fn byte(byte: u8) {
    while port_in(STATUS) & EMPTY == 0 {}
    port_out(DATA, byte);
}

#[doc(hidden)]
pub fn print(arguments: fmt::Arguments<'_>) {
    // Sending cannot fail.
    let _ = Com1.write_fmt(arguments);
}

/// Prints a line on COM1.
#[macro_export]
macro_rules! println {
    ($($arguments:tt)*) => {
        $crate::serial::print(format_args!("{}\n", format_args!($($arguments)*)))
    };
}
