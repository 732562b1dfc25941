//! How many frames a network device passes, beside the least any program must do for the same frames.
//!
//! A guest (`tests/guests/src/bench`) sends frames to a tap device, or receives those that wait in it,
//! in user mode and with interrupts off; the floor is a thread of this program that writes the same
//! frames to a tap device, or reads them, one system call for each, which is all that a tap offers.
//! All run in turn; medians and ratios are printed: `cargo bench --bench net`.
//!
//! The frames are of a type that nothing knows, in a network namespace of their own. Those to receive
//! are in the tap's queue before the time begins: whoever made them meanwhile would need a processor
//! too.
//!
//! "CPU" is that of the device's thread, and of the floor's. Then the system calls of the device's
//! thread are counted, in runs of their own, with strace.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::process::ExitCode;

#[cfg(target_arch = "x86_64")]
mod case;
#[cfg(target_arch = "x86_64")]
mod compare;
#[cfg(target_arch = "x86_64")]
#[path = "../common/measure.rs"]
mod measure;
#[cfg(target_arch = "x86_64")]
#[path = "../common/namespace.rs"]
mod namespace;
#[cfg(target_arch = "x86_64")]
mod tap;

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    match compare::in_namespace() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("net bench: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> ExitCode {
    eprintln!("net bench: SKIPPED, its guest is for x86_64 only");
    ExitCode::SUCCESS
}
