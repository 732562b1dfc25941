//! Runs a VM on the console that the configuration names.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use vmm_reference::{Console, Error, ExitReason, SerialTarget, Vm, VmConfig};

use super::CRASHED;
use super::terminal::RawTerminal;

pub(super) fn run(config: &VmConfig) -> Result<ExitCode, Error> {
    let mut vm = Vm::new(config, console(&config.serial)?)?;
    vm.stop_on(signals().map_err(|source| Error::Host {
        what: "cannot handle signals".to_owned(),
        source,
    })?);
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

/// SIGTERM, SIGINT and SIGHUP end the VM in order, so that the terminal is restored. Gives the end
/// of a socket that is readable once one has come.
fn signals() -> io::Result<OwnedFd> {
    let (receiver, sender) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        pipe::register(signal, sender.try_clone()?)?;
    }
    Ok(receiver.into())
}
