//! The memory map tells the truth: usable memory is there, each byte of it once, and what follows
//! it is not.

use core::arch::asm;

use guest::start_info::{RAM, Range};
use guest::{info, paging, println};

const PAGE: u64 = 0x1000;
const WORD: u64 = 8;
const MIB: u64 = 1 << 20;
const PROBES: usize = 128;

/// Address 0 is RAM too, so this is not for Rust's pointers.
fn load(address: u64) -> u64 {
    let value;
    // SAFETY: the caller has mapped the address.
    unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

fn store(address: u64, value: u64) {
    // SAFETY: the caller has mapped the address, and restores what was there before anything else
    // needs it: interrupts are off.
    unsafe { asm!("mov [{}], {}", in(reg) address, in(reg) value, options(nostack)) };
}

unsafe extern "C" {
    static image_end: u8;
}

/// Whether this guest lies there: RAM without question, and in use.
fn is_image(address: u64) -> bool {
    (MIB..(&raw const image_end).addr() as u64).contains(&address)
}

/// The first and the last word of the first and the last page.
fn probes(range: Range) -> [u64; 4] {
    let end = range.base + range.len;
    [range.base, range.base + PAGE - WORD, end - PAGE, end - WORD]
}

pub fn run() {
    let mut saved = [(0u64, 0u64); PROBES];
    let mut count = 0;
    let mut total = 0;
    for range in info().memory_map() {
        let last = range.base + range.len - 1;
        println!("{:#x}-{last:#x} type {}", range.base, range.kind);
        if range.kind != RAM {
            continue;
        }
        total += range.len;
        for address in probes(range)
            .into_iter()
            .filter(|&address| !is_image(address))
        {
            paging::map(address);
            saved[count] = (address, load(address));
            count += 1;
        }
    }
    let saved = &saved[..count];
    // Every word gets a value of its own before the first is read: no two are the same memory.
    // Nothing may run in between that uses the words, so no call and no print.
    saved
        .iter()
        .for_each(|&(address, _)| store(address, !address));
    let wrong = saved
        .iter()
        .find(|&&(address, _)| load(address) != !address);
    let found = wrong.map(|&(address, _)| (address, load(address)));
    saved
        .iter()
        .rev()
        .for_each(|&(address, value)| store(address, value));
    assert_eq!(
        found, None,
        "(address, value read) of memory that does not keep what is written"
    );
    for range in info()
        .memory_map()
        .filter(|range| range.kind == RAM && range.base >= MIB)
    {
        let after = range.base + range.len;
        paging::map(after);
        assert_eq!(
            load(after),
            u64::MAX,
            "there is memory at {after:#x}, after the usable range"
        );
    }
    println!("{} MiB usable", total.div_ceil(MIB));
}
