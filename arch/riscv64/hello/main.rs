//! The built-in guest: says what machine it found, then powers off. It runs without MMU, interrupts
//! and heap.

#![no_std]
#![no_main]

#[path = "../../hello/bindings.rs"]
mod bindings;
#[path = "../../hello/cpus.rs"]
mod cpus;
#[path = "../../hello/digits.rs"]
mod digits;
mod entry;
#[path = "../../hello/fdt.rs"]
mod fdt;
mod machine;
#[path = "../../hello/mem.rs"]
mod mem;
#[path = "../../hello/report.rs"]
mod report;
mod sbi;
mod serial;
#[path = "../../hello/text.rs"]
mod text;

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};

use machine::halt;
use sbi as firmware;
use text::{Console, hex, text};

extern "C" fn main(hart: u64, device_tree: u64) -> ! {
    // SAFETY: the kernel protocol has one there. Without a device tree there is nothing to say it
    // with either.
    let Some(tree) = (unsafe { fdt::at(device_tree) }) else {
        halt()
    };
    machine::open(hart, &tree);
    if let Some(base) = bindings::uart(&tree, b"ns16550a") {
        // SAFETY: the device tree says that this is such a UART.
        unsafe { serial::open(base) };
    }
    report::print(b"riscv64", &tree);
    power_off()
}

fn power_off() -> ! {
    firmware::power_off();
    text(b"hello: no way to power off\n");
    halt()
}

/// An exception ends the guest; a second one, in the text about the first, does so in silence.
extern "C" fn fault(cause: u64, instruction: u64, value: u64) -> ! {
    static AGAIN: AtomicBool = AtomicBool::new(false);
    if !AGAIN.load(Ordering::Relaxed) {
        AGAIN.store(true, Ordering::Relaxed);
        text(b"hello: exception, scause ");
        hex(cause);
        text(b", sepc ");
        hex(instruction);
        text(b", stval ");
        hex(value);
        text(b"\n");
    }
    power_off()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    // Console takes all text.
    let _ = writeln!(Console, "hello: {info}");
    power_off()
}
