//! Text on COM1, polled. Each access to a port is an exit, so the transmitter is asked once for as many bytes
//! as it takes.

use crate::digits::{digits, room};
use crate::machine::{port_in, port_out, port_out_all};

const COM1: u16 = 0x3f8;
/// Interrupt identification where it is read, FIFO control where it is written.
const FIFO: u16 = COM1 + 2;
const FIFO_ENABLE: u8 = 1;
/// Interrupt identification: there is a FIFO that works, and it is enabled.
const FIFO_ENABLED: u8 = 0b1100_0000;
/// Bytes that a 16550A's transmitter takes when it is empty.
const FIFO_SIZE: usize = 16;
const LINE_STATUS: u16 = COM1 + 5;
/// Line status: the transmitter is empty.
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// How often a transmitter that is not empty is asked. Without a UART every bit reads as 1.
const PATIENCE: u32 = 10_000;

/// A UART whose FIFO is on, if it has one.
pub struct Serial {
    /// Bytes that an empty transmitter takes.
    size: usize,
    /// Bytes that it takes still.
    room: usize,
}

impl Serial {
    pub fn new() -> Self {
        port_out(FIFO, FIFO_ENABLE);
        let fifo = port_in(FIFO) & FIFO_ENABLED == FIFO_ENABLED;
        Self {
            size: if fifo { FIFO_SIZE } else { 1 },
            room: 0,
        }
    }

    /// Prints text as it is.
    pub fn text(&mut self, mut text: &[u8]) -> &mut Self {
        while !text.is_empty() {
            if self.room == 0 {
                if !(0..PATIENCE).any(|_| port_in(LINE_STATUS) & TRANSMITTER_EMPTY != 0) {
                    return self;
                }
                self.room = self.size;
            }
            let (part, rest) = text.split_at(text.len().min(self.room));
            port_out_all(COM1, part);
            self.room -= part.len();
            text = rest;
        }
        self
    }

    /// Prints a number in decimal.
    pub fn decimal(&mut self, number: u64) -> &mut Self {
        self.text(digits(&mut room(), number, 10))
    }

    /// Prints a number in hexadecimal.
    pub fn hex(&mut self, number: u64) -> &mut Self {
        self.text(b"0x").text(digits(&mut room(), number, 16))
    }
}
