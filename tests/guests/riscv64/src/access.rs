//! Memory and registers by address. Without translation every address is mapped; what is not there
//! reads as something.

use core::arch::asm;

/// Reads eight bytes.
pub fn load(address: u64) -> u64 {
    let value;
    // SAFETY: a read changes no memory.
    unsafe { asm!("ld {}, 0({})", out(reg) value, in(reg) address, options(nostack)) };
    value
}

/// Writes eight bytes.
pub fn store(address: u64, value: u64) {
    // SAFETY: the callers use memory that is nobody's.
    unsafe { asm!("sd {}, 0({})", in(reg) value, in(reg) address, options(nostack)) };
}

/// Reads four bytes.
pub fn load_word(address: u64) -> u32 {
    let value: u64;
    // SAFETY: as above.
    unsafe { asm!("lwu {}, 0({})", out(reg) value, in(reg) address, options(nostack)) };
    value as u32
}

/// Writes four bytes.
pub fn store_word(address: u64, value: u32) {
    // SAFETY: as above.
    unsafe { asm!("sw {}, 0({})", in(reg) u64::from(value), in(reg) address, options(nostack)) };
}

/// Reads a byte.
pub fn load_byte(address: u64) -> u8 {
    let value: u64;
    // SAFETY: as above.
    unsafe { asm!("lbu {}, 0({})", out(reg) value, in(reg) address, options(nostack)) };
    value as u8
}

/// Writes a byte.
pub fn store_byte(address: u64, value: u8) {
    // SAFETY: as above.
    unsafe { asm!("sb {}, 0({})", in(reg) u64::from(value), in(reg) address, options(nostack)) };
}

/// Reads one, two, four and eight bytes.
pub fn widths(address: u64) -> [u64; 4] {
    let (byte, half, word): (u64, u64, u64);
    // SAFETY: aligned, and no memory that Rust knows.
    unsafe {
        asm!(
            "lbu {byte}, 0({address})",
            "lhu {half}, 0({address})",
            "lwu {word}, 0({address})",
            byte = out(reg) byte,
            half = out(reg) half,
            word = out(reg) word,
            address = in(reg) address,
            options(nostack),
        );
    }
    [byte, half, word, load(address)]
}
