//! The binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmm_firecracker::main()
}
