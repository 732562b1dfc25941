//! Memory that keeps what was written to it, while something else has a copy of it.

use core::ptr;

use guest::machine::ticks;
use guest::start_info::RAM;
use guest::{info, option, println, user};

const PAGE: u64 = 0x1000;
/// Where memory begins that is nobody's: below are tables, what the VMM has told, and this guest.
const FIRST: u64 = 4 << 20;
/// Bytes between two words of a page that are written.
const STEP: usize = 512;
/// Odd, so that no two pages have the same values.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

unsafe extern "C" {
    static image_end: u8;
}

/// Does something to each word of all pages: its number, and where it is.
fn each(mut act: impl FnMut(u64, *mut u64)) -> u64 {
    let mut pages = 0;
    for range in info().memory_map() {
        if range.kind != RAM || range.base > FIRST {
            continue;
        }
        let end = range.base + range.len;
        for page in (FIRST..end).step_by(PAGE as usize) {
            for place in (0..PAGE as usize).step_by(STEP) {
                let address = page + place as u64;
                act(address.wrapping_mul(FACTOR), address as *mut u64);
            }
            pages += 1;
        }
    }
    pages
}

/// Writes all pages anew in each of `rounds=N`, after it has found them as they were written before. What is written
/// depends on the time, so that no other machine writes the same.
pub fn run() {
    let rounds = option("rounds").map_or(1, |text| text.parse().expect("rounds=NUMBER"));
    assert!(((&raw const image_end).addr() as u64) < FIRST);
    let pages = user(|| {
        let mut before = None;
        let mut pages = 0;
        for round in 1..=rounds {
            let now = ticks();
            pages = each(|number, word| {
                // SAFETY: it is RAM that nobody else uses, and mapped.
                unsafe {
                    if let Some(before) = before {
                        assert_eq!(ptr::read_volatile(word), number ^ before, "{word:?}");
                    }
                    ptr::write_volatile(word, number ^ now);
                }
            });
            before = Some(now);
            println!("{round}");
        }
        pages
    });
    println!("{pages} pages");
}
