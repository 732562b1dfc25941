//! The micro-guest of aarch64.
//!
//! It stands on the built-in guest's modules.

#![no_std]
#![no_main]

// What the tests share with the other architectures takes from it what they take from here.
extern crate self as guest;

mod access;
#[path = "../../../../arch/hello/bindings.rs"]
mod bindings;
#[path = "../../../../arch/hello/cpus.rs"]
mod cpus;
#[path = "../../../../arch/hello/digits.rs"]
mod digits;
#[path = "../../../../arch/aarch64/hello/entry.rs"]
mod entry;
#[path = "../../../../arch/hello/fdt.rs"]
mod fdt;
mod gic;
#[path = "../../../../arch/aarch64/hello/machine.rs"]
mod machine;
mod memory;
#[path = "../../../../arch/aarch64/hello/psci.rs"]
mod psci;
#[path = "../../tree/run.rs"]
mod run;
#[path = "../../../../arch/aarch64/hello/serial.rs"]
mod serial;
#[path = "../../tree/tests.rs"]
mod tests;
#[allow(dead_code)] // the built-in guest prints without formatting
#[path = "../../../../arch/hello/text.rs"]
mod text;
mod uart;
#[path = "../../src/tests/virtio/mod.rs"]
mod virtio;

use gic as irq;
use psci as firmware;

use run::{DEVICES, ecam, option, options, user};

extern "C" fn main(device_tree: u64) -> ! {
    run::open(device_tree);
    let tree = run::tree();
    psci::open(&tree);
    if let Some(base) = bindings::uart(&tree, uart::BINDING) {
        // SAFETY: the device tree says that this is a PL011.
        unsafe { serial::open(base) };
    }
    run::run()
}

extern "C" fn fault(syndrome: u64, instruction: u64, address: u64) -> ! {
    println!("exception: ESR {syndrome:#x}, ELR {instruction:#x}, FAR {address:#x}");
    run::exit(101)
}
