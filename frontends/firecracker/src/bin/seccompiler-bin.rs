//! The program `seccompiler-bin`.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmm_firecracker::seccomp::compile::main()
}
