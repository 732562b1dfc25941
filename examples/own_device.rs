//! A device that the library does not have: a counter in a register, and an interrupt at every tenth write.
//!
//! `own_device KERNEL`; without a kernel, the built-in guest boots, which knows nothing of the device.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_reference::{Attachments, BusDevice, Console, Interrupt, Outcome, OwnDevice, Vm, VmConfig};

/// Where the guest finds it: in the part of the address space that the machine has for devices, above what it has
/// there already. `vmm-reference plan` shows what that is.
const BASE: u64 = 0xf000_0000;
/// The line of the interrupt chip, which no device of this machine has.
const LINE: u32 = 20;

/// The register at offset 0: a write counts, whatever is written, and a read gives the count.
#[derive(Debug, Default)]
struct Counter {
    count: AtomicU32,
    interrupt: Interrupt,
}

// A guest may access any offset, in any width, from any of its vCPUs, at any time.
impl BusDevice for Counter {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let count = self.count.load(Ordering::Relaxed).to_le_bytes();
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = count.iter().skip(skipped).chain(std::iter::repeat(&0));
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    fn write(&self, offset: u64, _: &[u8]) -> Outcome {
        if offset == 0 && (self.count.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(10) {
            self.interrupt.raise();
        }
        // A device may also switch the machine off, or reset it.
        Outcome::Continue
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut config = VmConfig::default();
    if let Some(kernel) = std::env::args_os().nth(1) {
        config = config.with_kernel(kernel);
    }
    let counter = Arc::new(Counter::default());
    let device = OwnDevice::in_memory("counter", BASE, 0x1000, counter.clone())
        .with_interrupt(LINE, &counter.interrupt);
    let attachments = Attachments::from(Console::stdio()?).with_device(device);
    let ended = Vm::new(&config, attachments)?.run()?;
    println!(
        "{ended}; it has written {} times",
        counter.count.load(Ordering::Relaxed)
    );
    Ok(())
}
