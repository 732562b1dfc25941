//! Two VMs in one process: each has a thread of its own that runs it, and a console of its own that ends in a buffer.
//!
//! `two_vms [KERNEL]`; without a kernel, the built-in guest boots.

use std::error::Error;
use std::io::{self, Read};
use std::thread;

use vmm_reference::{Console, EscapeKeys, Vm, VmConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let mut config = VmConfig::default();
    if let Some(kernel) = std::env::args_os().nth(1) {
        config = config.with_kernel(kernel);
    }
    let mut running = Vec::new();
    for (name, vcpus) in [("first", 1), ("second", 2)] {
        let (mut output, guest) = io::pipe()?;
        let console = Console::from_fds(None, Some(guest.into()), EscapeKeys::Off);
        let vm = Vm::new(&config.clone().with_vcpus(vcpus), console)?;
        let reader = thread::spawn(move || {
            let mut text = Vec::new();
            output.read_to_end(&mut text).map(|_| text)
        });
        running.push((name, thread::spawn(move || vm.run()), reader));
    }
    for (name, vm, reader) in running {
        // `run` returns when all threads of the VM have ended, and the console is closed then.
        let ended = vm.join().map_err(|_| "a VM's thread has panicked")??;
        let text = reader.join().map_err(|_| "a reader has panicked")??;
        println!("{name}: {ended}");
        for line in String::from_utf8_lossy(&text).lines() {
            println!("{name} said: {line}");
        }
    }
    Ok(())
}
