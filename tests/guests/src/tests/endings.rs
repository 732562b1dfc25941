//! Guests that end otherwise than by powering off.

use core::arch::asm;

use guest::machine::port_out;
use guest::{println, user};

/// Resets through the keyboard controller.
pub fn reset() {
    println!("resetting");
    port_out(0x64, 0xfe);
    panic!("still running after the reset");
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
