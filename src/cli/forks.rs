//! Runs a VM whose process forks with it, and its forks: parent and child go on here.

use std::mem;

use signal_hook::consts::{SIGCONT, SIGQUIT, SIGTSTP, SIGWINCH};
use vmm_reference::{ControlServer, Error, ExitReason, Fork, Forking, HostPlatform, Ran, Vm};

use super::around::{Around, EndSignals};
use super::notify::Notifier;
use super::signals::unregister_all;
use super::terminal;

/// Runs a VM to its end, in whichever process that is.
pub(super) fn run(vm: Vm, around: &mut Around) -> Result<ExitReason, Error> {
    let mut ran = vm.run_until_fork()?;
    loop {
        let parked = match ran {
            Ran::Fork(parked) => parked,
            Ran::Ended(reason) => return Ok(reason),
        };
        // No thread is left then.
        let control = around.control.take().map(ControlServer::park);
        if let Some(terminal) = &mut around.terminal {
            terminal.park();
        }
        if let Some(notifier) = &mut around.notifier {
            notifier.park();
        }
        // SAFETY: what of this program owns descriptors, or belongs to threads, is what is around the VM, and is forgotten in
        // the child.
        ran = match unsafe { parked.fork(&[], unregister_all) } {
            Forking::Child(fork) => {
                // The parent's clients, its terminal and its files are none of the fork's, which would take the socket away
                // and restore the terminal.
                mem::forget((control, around.terminal.take(), around.timeline.take()));
                mem::forget(around.notifier.take());
                go_on(fork, around)?.run_until_fork()?
            }
            Forking::Parent(parked) => {
                let served = control.map(|control| control.serve()).transpose();
                around.control = served.unwrap_or_else(|error| {
                    log::error!("no command is taken any more: {error}");
                    None
                });
                if let Some(terminal) = &mut around.terminal {
                    terminal.unpark();
                }
                if let Some(Err(error)) = around.notifier.as_mut().map(Notifier::unpark) {
                    log::error!("no sign of life is given any more: {error}");
                }
                parked.go_on()?
            }
        };
    }
}

/// A fork in its own process.
fn go_on(mut fork: Fork<HostPlatform>, around: &mut Around) -> Result<Vm, Error> {
    terminal::give_up();
    for signal in [SIGCONT, SIGQUIT, SIGTSTP, SIGWINCH] {
        // SAFETY: they do what they do to any program: the terminal is not the fork's.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let control = fork.control();
    // Those that have come by now are let through when it is built.
    let own = control.and_then(|control| Ok((control, EndSignals::catch(around.ignored)?)));
    let (control, signals) = match own {
        Ok(own) => own,
        Err(error) => {
            fork.fail(&error);
            return Err(error);
        }
    };
    let consoles = fork.consoles();
    let mut vm = fork.build(consoles)?;
    signals.end(&mut vm);
    let served = control.map(|control| control.serve(vm.handle()));
    around.control = served.transpose()?;
    Ok(vm)
}
