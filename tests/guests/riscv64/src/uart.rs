//! The 16550A's input (its data sheet, PC16550D), with its interrupt.

use crate::access::{load_byte, store_byte, store_word, widths};
use crate::irq;
use crate::run::{device, tree};

/// The binding serial/8250.yaml.
pub const BINDING: &[u8] = b"ns16550a";

const RBR: u64 = 0;
const IER: u64 = 1;
const FCR: u64 = 2;
const MCR: u64 = 4;
const LSR: u64 = 5;
/// Interrupts for input; FIFOs on; there is input.
const ERBFI: u8 = 1;
const FIFOS: u8 = 1;
const DR: u8 = 1;

fn base() -> u64 {
    device("ns16550a")
}

/// Calls `handler` when there is input.
pub fn listen(handler: fn()) {
    let tree = tree();
    let node = tree.nodes().find(|node| node.is_compatible(BINDING));
    let cells = node.and_then(|node| node.property(b"interrupts")?.first_chunk());
    irq::line(u32::from_be_bytes(*cells.expect("no interrupt")), handler);
    store_byte(base() + FCR, FIFOS);
    store_byte(base() + IER, ERBFI);
}

/// A byte of input.
pub fn take() -> Option<u8> {
    (load_byte(base() + LSR) & DR != 0).then(|| load_byte(base() + RBR))
}

/// Registers have one byte; other widths harm nothing.
pub fn take_every_width() {
    let status = load_byte(base() + LSR);
    let _ = widths(base());
    store_word(base() + MCR, 0);
    assert_eq!(load_byte(base() + LSR), status);
}
