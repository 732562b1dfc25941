//! The serial console in memory: its output is collected in a buffer, its input comes from one.
//!
//! `serial_buffer [KERNEL [INPUT]]`; without a kernel, the built-in guest boots, which reads nothing.

use std::error::Error;
use std::io::{self, Read, Write};
use std::thread;

use vmm_reference::{Console, EscapeKeys, Vm, VmConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let mut config = VmConfig::default();
    if let Some(kernel) = arguments.next() {
        config = config.with_kernel(kernel);
    }
    let input = arguments.next().unwrap_or_default();

    let (for_guest, mut to_guest) = io::pipe()?;
    let (mut from_guest, of_guest) = io::pipe()?;
    let console = Console::from_fds(
        Some(for_guest.into()),
        Some(of_guest.into()),
        EscapeKeys::Off,
    );
    let vm = Vm::new(&config, console)?;

    // What the guest has not read waits in the pipe. A serial console cannot wait for its reader: it keeps 64 KiB
    // for one that is slow. So both ends have a thread, and the VM has this one.
    let writer = thread::spawn(move || to_guest.write_all(input.as_encoded_bytes()));
    let reader = thread::spawn(move || {
        let mut buffer = Vec::new();
        from_guest.read_to_end(&mut buffer).map(|_| buffer)
    });
    let ended = vm.run()?;
    writer.join().map_err(|_| "the writer has panicked")??;
    let buffer = reader.join().map_err(|_| "the reader has panicked")??;

    println!("{ended}; it has printed {} bytes:", buffer.len());
    println!("{}", String::from_utf8_lossy(&buffer));
    Ok(())
}
