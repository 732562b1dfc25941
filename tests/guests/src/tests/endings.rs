//! Guests that end otherwise than by powering off.

use core::arch::asm;

use guest::machine::{port_in, port_out};
use guest::{option, println, user};

/// Resets through the keyboard controller.
pub fn reset() {
    println!("resetting");
    port_out(0x64, 0xfe);
    panic!("still running after the reset");
}

/// Tells of a panic by the register that `pvpanic=0xPORT` names.
pub fn panic() {
    let place = option("pvpanic").and_then(|text| text.strip_prefix("0x"));
    let port = place.and_then(|digits| u16::from_str_radix(digits, 16).ok());
    let port = port.expect("pvpanic=0xPORT");
    assert_eq!(port_in(port), 1, "the events that are known");
    println!("telling of a panic");
    port_out(port, 1);
    panic!("still running after the panic");
}

/// An exception that cannot be delivered, because there is no IDT.
pub fn triple_fault() {
    println!("faulting");
    let no_idt = [0u16; 5];
    // SAFETY: ends the machine, which is the purpose.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &no_idt, options(noreturn)) }
}

/// Computes for ever in user mode: leaves the guest only when the VMM makes it.
pub fn spin() {
    println!("spinning");
    user(|| {
        loop {
            core::hint::spin_loop();
        }
    })
}
