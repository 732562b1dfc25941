//! The built-in guest: says what machine it found, then powers off.
//!
//! Everything it prints comes from the machine: the vCPUs are those that ran, the memory is the
//! sum of the ranges in the device tree. It runs without MMU, interrupts, heap and floating point.

#![no_std]
#![no_main]

mod bindings;
mod cpus;
mod entry;
mod fdt;
mod machine;
mod psci;
mod serial;

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};

use fdt::{Fdt, Range};
use machine::{halt, memory};
use serial::{Console, decimal, hex, text};

const MIB: u64 = 1 << 20;

extern "C" fn main(device_tree: u64) -> ! {
    // Without a device tree there is nothing to say it with either.
    let Some(tree) = read(device_tree) else {
        halt()
    };
    if let Some(conduit) = bindings::conduit(&tree) {
        psci::set_conduit(conduit);
    }
    if let Some(base) = bindings::uart(&tree) {
        // SAFETY: the device tree says that this is a PL011.
        unsafe { serial::open(base) };
    }
    let described = bindings::cpus(&tree).count();
    let running = cpus::start(bindings::cpus(&tree));
    let bytes = bindings::memory(&tree).fold(0_u64, |sum, range| sum.saturating_add(range.len));

    text(b"hello from vmm-reference: aarch64, ");
    decimal(running as u64);
    text(b" vCPUs, ");
    decimal(bytes / MIB);
    text(b" MiB\n");
    if running != described {
        text(b"but the device tree describes ");
        decimal(described as u64);
        text(b" vCPUs\n");
    }
    bindings::memory(&tree).for_each(print_range);
    text(b"command line: ");
    text(bindings::bootargs(&tree).unwrap_or_default());
    text(b"\n");
    power_off()
}

/// The device tree at an address.
fn read(address: u64) -> Option<Fdt<'static>> {
    // SAFETY: the kernel protocol has a device tree there, and it is this guest's.
    unsafe {
        let size = fdt::size(memory(address, fdt::HEADER)?)?;
        Fdt::new(memory(address, size)?)
    }
}

fn print_range(range: Range) {
    text(b"  ");
    hex(range.base);
    text(b"-");
    hex(range.base.wrapping_add(range.len).wrapping_sub(1));
    text(b" usable\n");
}

fn power_off() -> ! {
    psci::system_off();
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
