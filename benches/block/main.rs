//! How fast a disk is, beside the least any program must do for the same reads.
//!
//! A guest (`tests/guests/src/bench`) reads a file that is in the page cache, in user mode and with
//! interrupts off, so that little but the device is measured; the floor is a thread of this program
//! that reads the same places of the same file with io_uring. All run in turn; medians and ratios
//! are printed: `cargo bench --bench block`.
//!
//! "CPU" is that of the device's thread, and of the floor's; "waited" is the part of the time in
//! which that thread was ready but had no processor. Much of it means that the machine had other
//! work, and that the other numbers say little.
//!
//! Then the system calls of the device's thread are counted, in runs of their own, with strace.
//!
//! `VMM_BENCH_PEER_FIRECRACKER=PATH` adds a peer, with the same guest and file.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::process::ExitCode;

#[cfg(target_arch = "x86_64")]
mod case;
#[cfg(target_arch = "x86_64")]
mod compare;
#[cfg(target_arch = "x86_64")]
mod floor;
#[cfg(target_arch = "x86_64")]
mod guest;
#[cfg(target_arch = "x86_64")]
#[path = "../common/measure.rs"]
mod measure;

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    match compare::compare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("block bench: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> ExitCode {
    eprintln!("block bench: SKIPPED, its guest is for x86_64 only");
    ExitCode::SUCCESS
}
