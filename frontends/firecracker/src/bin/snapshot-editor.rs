//! The program `snapshot-editor`.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmm_firecracker::editor::main()
}
