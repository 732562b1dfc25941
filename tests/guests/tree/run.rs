//! What micro-guests do on a machine with a device tree: find the test that the command line names,
//! `test=NAME`, run it, print `EXIT <code>` and power off.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::fdt::{self, Fdt};
use crate::machine::halt;
use crate::{bindings, firmware, tests};

static DEVICE_TREE: AtomicU64 = AtomicU64::new(0);

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($arguments:tt)*) => {{
        use core::fmt::Write;
        // Console takes all text.
        let _ = writeln!($crate::text::Console, $($arguments)*);
    }};
}

/// Takes note of where the device tree is.
pub fn open(device_tree: u64) {
    DEVICE_TREE.store(device_tree, Ordering::Relaxed);
}

/// The device tree; without one there is nothing to say it with either.
pub fn tree() -> Fdt<'static> {
    let address = DEVICE_TREE.load(Ordering::Relaxed);
    // SAFETY: the kernel protocol has a device tree there, and what is mapped is mapped one to one.
    unsafe { fdt::at(address) }.unwrap_or_else(|| halt())
}

/// The registers of the first node with this binding.
pub fn device(binding: &str) -> u64 {
    let tree = tree();
    let mut nodes = tree.nodes();
    let node = nodes.find(|node| node.is_compatible(binding.as_bytes()));
    let range = node.and_then(|node| node.reg().next());
    range.unwrap_or_else(|| panic!("no {binding}")).base
}

/// The value of `name=value` on the command line.
pub fn option(name: &str) -> Option<&'static str> {
    options(name).next()
}

/// The same for an option that may stand there several times.
pub fn options(name: &str) -> impl Iterator<Item = &'static str> {
    let tree = tree();
    let text = bindings::bootargs(&tree).unwrap_or_default();
    let text = core::str::from_utf8(text).unwrap_or_default();
    text.split(' ')
        .filter_map(move |word| word.strip_prefix(name)?.strip_prefix('='))
}

/// Where the configuration space of PCI is.
pub fn ecam() -> u64 {
    device("pci-host-ecam-generic")
}

/// Where devices have their registers.
pub const DEVICES: core::ops::Range<u64> = 0x4000_0000..0x8000_0000;

/// Runs a function, at the one level that this guest has.
pub fn user<T>(function: impl FnOnce() -> T) -> T {
    function()
}

/// Runs the test that the command line names.
pub fn run() -> ! {
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

/// Ends the guest.
pub fn exit(code: u8) -> ! {
    println!("EXIT {code}");
    firmware::power_off();
    println!("the power is still on");
    halt()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    println!("\n{info}");
    exit(1)
}
