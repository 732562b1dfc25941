//! A complete other front end: boots the kernel named on its command line (or the built-in guest)
//! with its console on stdin and stdout, and ends it when it takes longer than a minute.

use std::error::Error;
use std::thread;
use std::time::Duration;

use vmm_reference::{Console, ExitReason, Vm, VmConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let mut config = VmConfig::default().with_memory_mib(512).with_vcpus(2);
    if let Some(kernel) = std::env::args_os().nth(1) {
        config = config.with_kernel(kernel);
    }
    let vm = Vm::new(&config, Console::stdio()?)?;

    let handle = vm.handle();
    thread::spawn(move || {
        thread::sleep(Duration::from_secs(60));
        handle.request_stop();
    });

    match vm.run()? {
        ExitReason::PoweredOff | ExitReason::Reset => Ok(()),
        other => Err(format!("the VM ended early: {other:?}").into()),
    }
}
