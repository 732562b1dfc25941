//! Text to a 16550A (its data sheet, PC16550D), polled. Each access is an exit, so the transmitter is asked once for as
//! many bytes as it takes.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::machine::{register, set_register};

const THR: u64 = 0;
/// Interrupt identification where it is read, FIFO control where it is written.
const FIFO: u64 = 2;
const FIFO_ENABLE: u8 = 1;
/// Interrupt identification: there is a FIFO that works, and it is enabled.
const FIFO_ENABLED: u8 = 0b1100_0000;
/// Bytes that its transmitter takes when it is empty.
const FIFO_SIZE: usize = 16;
const LSR: u64 = 5;
/// Line status: the transmitter is empty.
const THRE: u8 = 1 << 5;
/// How often a transmitter that is not ready is asked.
const PATIENCE: u32 = 10_000;

/// Where the registers are; 0 means that there is no UART.
static BASE: AtomicU64 = AtomicU64::new(0);
/// Bytes that an empty transmitter takes.
static SIZE: AtomicUsize = AtomicUsize::new(1);

/// Prints on the UART with these registers from now on.
///
/// # Safety
/// They are a 16550A's, one byte each.
pub unsafe fn open(base: u64) {
    // SAFETY: as the caller promises; a UART does not touch memory.
    unsafe {
        set_register(base + FIFO, FIFO_ENABLE);
        if register(base + FIFO) & FIFO_ENABLED == FIFO_ENABLED {
            SIZE.store(FIFO_SIZE, Ordering::Relaxed);
        }
    }
    BASE.store(base, Ordering::Relaxed);
}

/// Prints text as it is, where there is a UART that takes it.
pub fn text(text: &[u8]) {
    let base = BASE.load(Ordering::Relaxed);
    if base == 0 {
        return;
    }
    // SAFETY: `open` was promised a UART.
    let is_empty = |_| unsafe { register(base + LSR) & THRE != 0 };
    for part in text.chunks(SIZE.load(Ordering::Relaxed)) {
        if !(0..PATIENCE).any(is_empty) {
            return;
        }
        for &byte in part {
            // SAFETY: likewise.
            unsafe { set_register(base + THR, byte) };
        }
    }
}
