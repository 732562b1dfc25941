//! Runs a VM on the console that the configuration names.

use std::io;
use std::process::ExitCode;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vmm_reference::{Console, Error, ExitReason, SerialTarget, Vm, VmConfig, VmHandle};

use super::CRASHED;
use super::terminal::RawTerminal;

pub(super) fn run(config: &VmConfig) -> Result<ExitCode, Error> {
    let vm = Vm::new(config, console(&config.serial)?)?;
    stop_on_signals(vm.handle())?;
    // Restored when it goes out of scope: after the guest's end, an error or a panic.
    let _terminal = (config.serial == SerialTarget::Stdio).then(RawTerminal::enter);
    match vm.run()? {
        ExitReason::Crashed => {
            eprintln!("the guest crashed");
            Ok(CRASHED.into())
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn console(target: &SerialTarget) -> Result<Console, Error> {
    let opened = match target {
        SerialTarget::Stdio => Console::stdio(),
        SerialTarget::Null => Ok(Console::null()),
        SerialTarget::File(path) => Console::file(path),
    };
    opened.map_err(|error| Error::Config {
        field: "serial",
        value: target.to_string(),
        cause: error.to_string(),
        cure: "name a file that can be written, or use --serial=null",
    })
}

/// SIGTERM, SIGINT and SIGHUP end the VM in order, so that the terminal is restored.
fn stop_on_signals(handle: VmHandle) -> Result<(), Error> {
    let host = |source: io::Error| Error::Host {
        what: "cannot handle signals".to_owned(),
        source,
    };
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(host)?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for _ in signals.forever() {
                handle.request_stop();
            }
        })
        .map_err(host)?;
    Ok(())
}
