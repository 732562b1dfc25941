//! The PL011's input (DDI 0183), with its interrupt.

use crate::access::{store, widths};
use crate::irq;
use crate::machine::{register, set_register};
use crate::run::device;

/// The binding serial/pl011.yaml.
pub const BINDING: &[u8] = b"arm,pl011";

const DR: u64 = 0x00;
const FR: u64 = 0x18;
const LCR_H: u64 = 0x2c;
const IMSC: u64 = 0x38;
const MIS: u64 = 0x40;
const RXFE: u32 = 1 << 4;
const FEN: u32 = 1 << 4;
/// Receive and receive timeout.
const RECEIVE: u32 = 1 << 4 | 1 << 6;
/// The first byte of the peripheral's identification.
const ID: u64 = 0xfe0;

fn read(offset: u64) -> u32 {
    // SAFETY: a register of the PL011.
    unsafe { register(device("arm,pl011") + offset) }
}

fn write(offset: u64, value: u32) {
    // SAFETY: a register of the PL011.
    unsafe { set_register(device("arm,pl011") + offset, value) }
}

/// Calls `handler` when there is input.
pub fn listen(handler: fn()) {
    irq::line(0, handler);
    write(LCR_H, FEN);
    write(IMSC, RECEIVE);
}

/// A byte of input.
pub fn take() -> Option<u8> {
    let _ = read(MIS);
    (read(FR) & RXFE == 0).then(|| read(DR) as u8)
}

/// Registers answer to any width.
pub fn take_every_width() {
    let id = device("arm,pl011") + ID;
    assert_eq!(widths(id), [0x11, 0x11, 0x11, 0x11]);
    store(id, u64::MAX);
    assert_eq!(widths(id)[2], 0x11);
}
