//! What the guest says about the machine. All of it comes from the machine: the vCPUs are those that
//! ran, the memory is the sum of the ranges in the device tree.

use crate::fdt::{Fdt, Range};
use crate::text::{decimal, hex, text};
use crate::{bindings, cpus};

const MIB: u64 = 1 << 20;

/// Starts the other vCPUs and prints what is there.
pub fn print(arch: &[u8], tree: &Fdt<'_>) {
    let described = bindings::cpus(tree).count();
    let running = cpus::start(bindings::cpus(tree));
    let bytes = bindings::memory(tree).fold(0_u64, |sum, range| sum.saturating_add(range.len));

    text(b"hello from vmm-reference: ");
    text(arch);
    text(b", ");
    decimal(running as u64);
    text(b" vCPUs, ");
    decimal(bytes / MIB);
    text(b" MiB\n");
    if running != described {
        text(b"but the device tree describes ");
        decimal(described as u64);
        text(b" vCPUs\n");
    }
    bindings::memory(tree).for_each(print_range);
    text(b"command line: ");
    text(bindings::bootargs(tree).unwrap_or_default());
    text(b"\n");
}

fn print_range(range: Range) {
    text(b"  ");
    hex(range.base);
    text(b"-");
    hex(range.base.wrapping_add(range.len).wrapping_sub(1));
    text(b" usable\n");
}
