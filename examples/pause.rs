//! Asks a VM while it runs: it is paused and goes on, says what it does, and tells of what happens to it.

use std::error::Error;
use std::thread;
use std::time::Duration;

use vmm_reference::{Command, Console, Vm, VmConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let mut config = VmConfig::default();
    if let Some(kernel) = std::env::args_os().nth(1) {
        config = config.with_kernel(kernel);
    }
    let vm = Vm::new(&config, Console::stdio()?)?;

    // Any thread may ask; the one in `run` answers.
    let handle = vm.handle();
    let events = handle.subscribe()?;
    // It begins paused, so that the short life of the built-in guest is not over before the first question.
    handle.command(Command::Pause {})?;
    let asking = thread::spawn(move || {
        while let Ok(reply) = handle.command(Command::Status {}) {
            eprintln!("{reply:?}");
            if handle.command(Command::Resume {}).is_err() {
                break;
            }
            thread::sleep(Duration::from_secs(1));
            if handle
                .command(Command::Metrics {})
                .map(|reply| eprintln!("{reply:?}"))
                .is_err()
            {
                break;
            }
        }
    });
    let ended = vm.run()?;
    while let Some(event) = events.try_next() {
        eprintln!("{event:?}");
    }
    eprintln!("{ended}");
    asking
        .join()
        .map_err(|_| "the thread that asks has panicked")?;
    Ok(())
}
