//! A guest that crashes: what happened, on which vCPU, and what its registers and its console had to say.
//!
//! `crash KERNEL`; without a kernel, the built-in guest boots, which does not crash.

use std::error::Error;

use vmm_reference::{Console, CrashCause, ExitReason, Vm, VmConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let mut config = VmConfig::default();
    if let Some(kernel) = std::env::args_os().nth(1) {
        config = config.with_kernel(kernel);
    }
    let vm = Vm::new(&config, Console::null())?;
    match vm.run()? {
        ExitReason::Crashed(crash) => {
            println!("it crashed on vCPU {}", crash.vcpu);
            match crash.cause {
                CrashCause::Panic => println!("its kernel panicked and said so"),
                CrashCause::TripleFault => println!("it had no handler for an exception"),
                other => println!("{other}"),
            }
            println!("{}", crash.report);
        }
        other => println!("{other}"),
    }
    Ok(())
}
