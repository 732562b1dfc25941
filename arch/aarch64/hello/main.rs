//! The built-in guest: says what machine it found, then powers off. It runs without interrupts and
//! heap.

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
mod psci;
#[path = "../../hello/report.rs"]
mod report;
mod serial;
#[path = "../../hello/text.rs"]
mod text;

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};

use machine::halt;
use psci as firmware;
use text::{Console, hex, text};

extern "C" fn main(device_tree: u64) -> ! {
    // SAFETY: the kernel protocol has one there. Without a device tree there is nothing to say it
    // with either.
    let Some(tree) = (unsafe { fdt::at(device_tree) }) else {
        halt()
    };
    psci::open(&tree);
    if let Some(base) = bindings::uart(&tree, b"arm,pl011") {
        // SAFETY: the device tree says that this is a PL011.
        unsafe { serial::open(base) };
    }
    report::print(b"aarch64", &tree);
    power_off()
}

fn power_off() -> ! {
    firmware::power_off();
    text(b"hello: no way to power off\n");
    halt()
}

/// An exception ends the guest; a second one, in the text about the first, does so in silence.
extern "C" fn fault(syndrome: u64, instruction: u64, address: u64) -> ! {
    static AGAIN: AtomicBool = AtomicBool::new(false);
    if !AGAIN.load(Ordering::Relaxed) {
        AGAIN.store(true, Ordering::Relaxed);
        text(b"hello: exception, ESR ");
        hex(syndrome);
        text(b", ELR ");
        hex(instruction);
        text(b", FAR ");
        hex(address);
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
