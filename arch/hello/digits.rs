//! Numbers as text. Where the host interprets the guest's code each instruction counts, so a number is printed as a
//! whole.

use core::mem::MaybeUninit;

/// Room for a number: 64 bits have 20 digits in decimal. It is not filled at first, which would take vector
/// instructions.
pub type Room = [MaybeUninit<u8>; 20];

/// Room for one number.
pub fn room() -> Room {
    [const { MaybeUninit::uninit() }; 20]
}

/// The digits of a number in a base from 10 to 16, the highest first.
pub fn digits(room: &mut Room, mut number: u64, base: u64) -> &[u8] {
    let mut first = room.len();
    for (place, digit) in room.iter_mut().enumerate().rev() {
        let value = (number % base) as u8;
        digit.write(value + if value < 10 { b'0' } else { b'a' - 10 });
        number /= base;
        first = place;
        if number == 0 {
            break;
        }
    }
    let written = room.get(first..).unwrap_or_default();
    // SAFETY: all from `first` on were written.
    unsafe { written.assume_init_ref() }
}
