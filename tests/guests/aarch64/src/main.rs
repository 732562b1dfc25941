//! The micro-guest of aarch64: runs the test that the command line names, `test=NAME`, prints
//! `EXIT <code>` and powers off.
//!
//! It stands on the built-in guest's modules: entry, device tree, PSCI, PL011. The MMU stays off but
//! for the tests of virtio devices, so memory behaves like a device's: accesses are aligned, and
//! nothing is locked.

#![no_std]
#![no_main]

// What the tests share with the other architecture takes from it what they take from here.
extern crate self as guest;

#[path = "../../../../arch/aarch64/hello/bindings.rs"]
mod bindings;
#[path = "../../../../arch/aarch64/hello/cpus.rs"]
mod cpus;
#[path = "../../../../arch/aarch64/hello/entry.rs"]
mod entry;
#[path = "../../../../arch/aarch64/hello/fdt.rs"]
mod fdt;
mod gic;
#[path = "../../../../arch/aarch64/hello/machine.rs"]
mod machine;
mod memory;
#[path = "../../../../arch/aarch64/hello/psci.rs"]
mod psci;
#[allow(dead_code)] // the built-in guest prints without formatting
#[path = "../../../../arch/aarch64/hello/serial.rs"]
mod serial;
mod tests;
#[path = "../../src/tests/virtio/mod.rs"]
mod virtio;

use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};

use fdt::Fdt;
use gic as irq;
use machine::halt;
use serial::Console;

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($arguments:tt)*) => {{
        use core::fmt::Write;
        // Console takes all text.
        let _ = writeln!($crate::serial::Console, $($arguments)*);
    }};
}

static DEVICE_TREE: AtomicU64 = AtomicU64::new(0);

extern "C" fn main(device_tree: u64) -> ! {
    DEVICE_TREE.store(device_tree, Ordering::Relaxed);
    let tree = tree();
    if let Some(conduit) = bindings::conduit(&tree) {
        psci::set_conduit(conduit);
    }
    if let Some(base) = bindings::uart(&tree) {
        // SAFETY: the device tree says that this is a PL011.
        unsafe { serial::open(base) };
    }
    let name = option("test").unwrap_or_default();
    match tests::ALL.iter().find(|(test, _)| *test == name) {
        Some((_, run)) => run(),
        None => {
            println!("test={name}: no such test");
            exit(2)
        }
    }
    exit(0)
}

/// The device tree; without one there is nothing to say it with either.
fn tree() -> Fdt<'static> {
    let address = DEVICE_TREE.load(Ordering::Relaxed);
    // SAFETY: the kernel protocol has a device tree there, and it is this guest's.
    let tree = unsafe {
        machine::memory(address, fdt::HEADER)
            .and_then(fdt::size)
            .and_then(|size| Fdt::new(machine::memory(address, size)?))
    };
    tree.unwrap_or_else(|| halt())
}

/// The value of `name=value` on the command line.
fn option(name: &str) -> Option<&'static str> {
    let tree = tree();
    let text = core::str::from_utf8(bindings::bootargs(&tree)?).ok()?;
    text.split(' ')
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// Where the configuration space of PCI is.
fn ecam() -> u64 {
    let binding = b"pci-host-ecam-generic";
    let node = tree().nodes().find(|node| node.is_compatible(binding));
    let place = node.and_then(|node| node.reg().next());
    place.expect("no PCI bus").base
}

/// Where devices have their registers.
const DEVICES: core::ops::Range<u64> = 0x4000_0000..0x8000_0000;

/// Runs a function, at the one level that this guest has.
fn user<T>(function: impl FnOnce() -> T) -> T {
    function()
}

/// Ends the guest.
fn exit(code: u8) -> ! {
    println!("EXIT {code}");
    psci::system_off();
    println!("the power is still on");
    halt()
}

extern "C" fn fault(syndrome: u64, instruction: u64, address: u64) -> ! {
    println!("exception: ESR {syndrome:#x}, ELR {instruction:#x}, FAR {address:#x}");
    exit(101)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    let _ = writeln!(Console, "\n{info}");
    exit(1)
}
