//! Memory and registers by address. Without an MMU every address is mapped; what is not there reads as
//! something.

use core::arch::asm;

/// Reads eight bytes.
pub fn load(address: u64) -> u64 {
    let value;
    // SAFETY: a read changes no memory.
    unsafe { asm!("ldr {}, [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

/// Writes eight bytes.
pub fn store(address: u64, value: u64) {
    // SAFETY: the callers use memory that is nobody's.
    unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) address, options(nostack)) };
}

/// Reads a byte.
pub fn load_byte(address: u64) -> u8 {
    let value: u32;
    // SAFETY: as above.
    unsafe { asm!("ldrb {:w}, [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value as u8
}

/// Writes a byte.
pub fn store_byte(address: u64, value: u8) {
    // SAFETY: as above.
    unsafe { asm!("strb {:w}, [{}]", in(reg) u32::from(value), in(reg) address, options(nostack)) };
}

/// Reads one, two, four and eight bytes.
pub fn widths(address: u64) -> [u64; 4] {
    let (byte, half, word): (u64, u64, u64);
    // SAFETY: aligned, and no memory that Rust knows.
    unsafe {
        asm!(
            "ldrb {:w}, [{address}]",
            "ldrh {:w}, [{address}]",
            "ldr {:w}, [{address}]",
            out(reg) byte,
            out(reg) half,
            out(reg) word,
            address = in(reg) address,
            options(nostack),
        );
    }
    [byte, half, word, load(address)]
}
