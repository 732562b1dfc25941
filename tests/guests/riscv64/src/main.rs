//! The micro-guest of riscv64.
//!
//! It stands on the built-in guest's modules. Nothing is translated; memory is coherent all the same.

#![no_std]
#![no_main]

// What the tests share with the other architectures takes from it what they take from here.
extern crate self as guest;

mod access;
mod aia;
#[path = "../../../../arch/hello/bindings.rs"]
mod bindings;
#[path = "../../../../arch/hello/cpus.rs"]
mod cpus;
#[path = "../../../../arch/hello/digits.rs"]
mod digits;
#[path = "../../../../arch/riscv64/hello/entry.rs"]
mod entry;
#[path = "../../../../arch/hello/fdt.rs"]
mod fdt;
#[path = "../../../../arch/riscv64/hello/machine.rs"]
mod machine;
mod memory;
#[path = "../../tree/run.rs"]
mod run;
#[path = "../../../../arch/riscv64/hello/sbi.rs"]
mod sbi;
#[path = "../../../../arch/riscv64/hello/serial.rs"]
mod serial;
#[path = "../../tree/tests.rs"]
mod tests;
#[allow(dead_code)] // the built-in guest prints without formatting
#[path = "../../../../arch/hello/text.rs"]
mod text;
mod uart;
#[path = "../../src/tests/virtio/mod.rs"]
mod virtio;

use aia as irq;
use sbi as firmware;

use run::{DEVICES, ecam, option, options, user};

extern "C" fn main(hart: u64, device_tree: u64) -> ! {
    run::open(device_tree);
    let tree = run::tree();
    machine::open(hart, &tree);
    if let Some(base) = bindings::uart(&tree, uart::BINDING) {
        // SAFETY: the device tree says that this is a 16550A.
        unsafe { serial::open(base) };
    }
    run::run()
}

extern "C" fn fault(cause: u64, instruction: u64, value: u64) -> ! {
    println!("exception: scause {cause:#x}, sepc {instruction:#x}, stval {value:#x}");
    run::exit(101)
}
