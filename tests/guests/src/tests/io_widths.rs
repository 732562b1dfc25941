//! Ports and memory-mapped registers take any width and alignment; what is not there reads as all
//! ones.

use core::arch::asm;

use guest::machine::{port_in, port_out};
use guest::serial::{DATA, SCRATCH};
use guest::start_info::RAM;
use guest::{info, ports, println, user};

/// No device has ports here.
const NO_PORT: u16 = 0x501;
/// In the hole below 4 GiB, which has no device here.
const NO_MEMORY: u64 = 0xd000_0000;
/// Addresses in a page and across its end.
const OFFSETS: [u64; 9] = [0, 1, 2, 3, 5, 7, 0xff9, 0xffd, 0xfff];

pub fn run() {
    let ram_end = info()
        .memory_map()
        .filter(|range| range.kind == RAM && range.base < 3 << 30)
        .map(|range| range.base + range.len)
        .max()
        .expect("no RAM");
    both(ram_end);
    println!("kernel mode done");
    user(|| both(ram_end));
    println!("user mode done");
}

fn both(ram_end: u64) {
    port_widths();
    string_io();
    for offset in OFFSETS {
        memory(NO_MEMORY + offset);
    }
    straddle(ram_end);
}

fn port_widths() {
    for port in [NO_PORT, NO_PORT + 1, 0xfffc] {
        assert_eq!(port_in(port), 0xff);
        assert_eq!(ports::in16(port), 0xffff);
        assert_eq!(ports::in32(port), 0xffff_ffff);
        port_out(port, 0);
        ports::out16(port, 0);
        ports::out32(port, 0);
    }
    // A wide access is one to consecutive registers, and the UART ends after its scratch register.
    port_out(SCRATCH, 0x5a);
    assert_eq!(ports::in16(SCRATCH), 0xff5a);
    assert_eq!(ports::in32(SCRATCH), 0xffff_ff5a);
    assert_eq!(ports::in16(SCRATCH - 1) >> 8, 0x5a);
    assert_eq!(ports::in32(SCRATCH - 3) >> 24, 0x5a);
    ports::out16(SCRATCH, 0x12a5);
    assert_eq!(port_in(SCRATCH), 0xa5);
    ports::out16(SCRATCH - 1, 0x3c00);
    assert_eq!(port_in(SCRATCH), 0x3c);
}

fn string_io() {
    ports::rep_out8(DATA, b"printed by rep outsb\n");
    ports::rep_out8(DATA, b"");
    let mut bytes = [0; 300];
    ports::rep_in8(SCRATCH, &mut bytes);
    assert_eq!(bytes, [0x3c; 300]);
    let mut words = [0; 300];
    ports::rep_in16(SCRATCH, &mut words);
    assert_eq!(words, [0xff3c; 300]);
    ports::rep_in8(NO_PORT, &mut []);
}

macro_rules! access {
    ($address:expr, $type:ty, $class:ident, $register:literal) => {{
        let address: u64 = $address;
        let value: $type;
        // SAFETY: the addresses are mapped, and no memory or device of the machine is there.
        unsafe {
            asm!(concat!("mov [{0}], ", $register), in(reg) address, in($class) 0 as $type);
            asm!(concat!("mov ", $register, ", [{0}]"), in(reg) address, out($class) value);
        }
        assert_eq!(value, <$type>::MAX, "at {address:#x}");
    }};
}

/// Writes are swallowed, reads give ones.
fn memory(address: u64) {
    access!(address, u8, reg_byte, "{1}");
    access!(address, u16, reg, "{1:x}");
    access!(address, u32, reg, "{1:e}");
    access!(address, u64, reg, "{1:r}");
}

/// A word that begins in RAM and ends beyond it.
fn straddle(ram_end: u64) {
    let address = ram_end - 3;
    let value: u64;
    // SAFETY: the last bytes of RAM are nobody's, and nothing is behind them.
    unsafe {
        asm!("mov [{}], {}", in(reg) address, in(reg) 0x8877_6655_4433_2211u64);
        asm!("mov {}, [{}]", out(reg) value, in(reg) address);
    }
    assert_eq!(value, 0xffff_ffff_ff33_2211, "at {address:#x}");
}
