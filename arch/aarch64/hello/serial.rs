//! Text to a PL011 (Arm DDI 0183), polled. Each access is an exit, so the transmitter is asked once for as many bytes
//! as it takes.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine::{register, set_register};

const DR: u64 = 0;
const FR: u64 = 0x18;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
/// Flags: the transmitter is empty.
const TXFE: u32 = 1 << 7;
/// Line control: the FIFOs are on; eight bits.
const FEN: u32 = 1 << 4;
const WLEN_8: u32 = 0b11 << 5;
/// Bytes that an empty FIFO takes; later revisions take more.
const FIFO_SIZE: usize = 16;
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
    unsafe {
        set_register(base + LCR_H, FEN | WLEN_8);
        set_register(base + CR, UARTEN | TXE);
    }
    BASE.store(base, Ordering::Relaxed);
}

/// Prints text as it is, where there is a UART that takes it.
pub fn text(text: &[u8]) {
    let base = BASE.load(Ordering::Relaxed);
    if base == 0 {
        return;
    }
    // SAFETY: `open` was promised a PL011.
    let is_empty = |_| unsafe { register(base + FR) & TXFE != 0 };
    for part in text.chunks(FIFO_SIZE) {
        if !(0..PATIENCE).any(is_empty) {
            return;
        }
        for &byte in part {
            // SAFETY: likewise.
            unsafe { set_register(base + DR, byte.into()) };
        }
    }
}
