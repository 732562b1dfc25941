//! Ends a VM in a bounded time: the guest is asked to power itself off, and when it has not done so after a while, the
//! VM ends without it.
//!
//! `stop_in_time [KERNEL [SECONDS]]`; without a kernel, the built-in guest boots, which ends by itself. SECONDS is how
//! long the guest may run before it is asked.

use std::error::Error;
use std::thread;
use std::time::{Duration, Instant};

use vmm_reference::{Console, Happening, Vm, VmConfig};

/// How long the guest may take to power itself off.
const PATIENCE: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut config = VmConfig::default();
    if let Some(kernel) = arguments.next() {
        config = config.with_kernel(kernel);
    }
    let seconds: u64 = arguments.next().map_or(Ok(60), |text| text.parse())?;
    let vm = Vm::new(&config, Console::null())?;
    let handle = vm.handle();
    let events = handle.subscribe()?;
    let running = thread::spawn(move || vm.run());

    let deadline = Instant::now() + Duration::from_secs(seconds);
    // Waiting costs nothing, and the guest's own end is noticed at once.
    let mut ended = false;
    while let Some(event) = events.wait(deadline.saturating_duration_since(Instant::now())) {
        if matches!(event.what, Happening::Ended { .. }) {
            ended = true;
            break;
        }
    }
    if !ended {
        println!("the guest is asked to power off");
        // Ends the VM after PATIENCE at the latest; `request_stop` ends it at once.
        handle.request_shutdown(PATIENCE);
    }
    let reason = running
        .join()
        .map_err(|_| "the VM's thread has panicked")??;
    println!("{reason}");
    Ok(())
}
