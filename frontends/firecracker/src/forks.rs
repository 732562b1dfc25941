//! Runs a machine whose process forks with it, and its forks: parent and child go on here.

use std::mem;
use std::os::fd::AsFd;
use std::sync::mpsc::channel;

use vmm_reference::{Error, ExitReason, Fork, Forking, HostPlatform, Ran, SocketServer, Vm};

use crate::api::service::Api;
use crate::machine::{Machine, Place, Plan};
use crate::signals::{self, Clock};
use crate::{logger, metrics, terminal};

/// What is around a machine.
#[derive(Debug)]
pub(crate) struct Around {
    pub(crate) server: Option<SocketServer>,
    pub(crate) clock: Option<Clock>,
    /// Where a fork's process finds what it is to know.
    pub(crate) forks: Place,
    /// The longest body of a request, in bytes.
    pub(crate) payload_limit: usize,
}

/// Runs a machine to its end, in whichever process that is.
pub(crate) fn run(vm: Vm, around: &mut Around) -> Result<ExitReason, Error> {
    let ended = run_all(vm, around);
    if let Ok(ExitReason::Crashed(_)) | Err(Error::Vcpu { .. }) = &ended {
        metrics::count("vcpu", "failures");
    }
    ended
}

fn run_all(vm: Vm, around: &mut Around) -> Result<ExitReason, Error> {
    let mut ran = vm.run_until_fork()?;
    loop {
        let parked = match ran {
            Ran::Fork(parked) => parked,
            Ran::Ended(reason) => return Ok(reason),
        };
        // No thread is left then.
        let server = around.server.take().map(SocketServer::park);
        let clock = around.clock.take().map(Clock::park);
        // Nobody asks for a fork otherwise.
        let Some(plan) = around.forks.take() else {
            ran = parked.go_on()?;
            continue;
        };
        let log = logger::target();
        let keep: Vec<_> = log
            .iter()
            .map(|file| file.as_fd())
            .chain(plan.descriptors())
            .collect();
        // SAFETY: what of this program owns other descriptors than these, or belongs to threads, are the server with its
        // machine, the clock and the metrics, and is forgotten in the child.
        ran = match unsafe { parked.fork(&keep, signals::forget) } {
            Forking::Child(fork) => {
                mem::forget((server, clock));
                go_on(fork, plan, around)?.run_until_fork()?
            }
            Forking::Parent(parked) => {
                drop(plan);
                match clock.map(|clock| clock.go_on()).transpose() {
                    Ok(clock) => around.clock = clock,
                    Err(error) => log::error!("Signals are not told of any more: {error}"),
                }
                match server.map(|server| server.serve()).transpose() {
                    Ok(server) => around.server = server,
                    Err(error) => {
                        log::error!("No request is taken any more: {}", error.chain());
                    }
                }
                parked.go_on()?
            }
        };
    }
}

/// A fork in its own process.
fn go_on(mut fork: Fork<HostPlatform>, plan: Plan, around: &mut Around) -> Result<Vm, Error> {
    terminal::give_up();
    logger::rename(plan.id());
    let mut plan = plan;
    metrics::forked(plan.metrics.take());
    let consoles = fork.consoles();
    let attachments = match plan.attachments(consoles) {
        Ok(attachments) => attachments,
        Err(fault) => {
            let error = Error::Host {
                what: "the fork cannot begin".to_owned(),
                source: std::io::Error::other(fault.to_string()),
            };
            fork.fail(&error);
            return Err(error);
        }
    };
    let vm = fork.build(attachments)?;
    // Not before: the parent's threads come first, and it has them again once the machine is built.
    let clock = signals::start_thread(plan.filters().is_some());
    around.clock = Some(clock.map_err(|source| Error::Host {
        what: "the thread that tells of signals cannot be started".to_owned(),
        source,
    })?);
    let handle = vm.handle();
    let events = handle.subscribe()?;
    metrics::watch(handle.clone());
    // It is built by now.
    let (builder, _) = channel();
    let listener = plan.listener.try_clone();
    let listener = listener.map_err(|source| Error::Host {
        what: "the API's socket".to_owned(),
        source,
    })?;
    let filters = plan.filters().cloned();
    let machine = Machine::forked(plan, handle, events, builder);
    around.forks = machine.forks();
    let api = Api::new(machine, around.payload_limit, filters);
    around.server = Some(SocketServer::start("fc_api", listener, api)?);
    log::info!("API server started.");
    Ok(vm)
}
