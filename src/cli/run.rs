//! Runs a VM on the console that the configuration names.

use std::path::Path;
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
#[cfg(feature = "control")]
use vmm_reference::ControlSocket;
use vmm_reference::{
    Attachments, Console, Consoles, Error, ExitReason, MainConsole, NamedFile, Vm, VmConfig,
    refused_output,
};

use super::around::{Around, EndSignals};
use super::config::{Config, ConsoleTarget};
use super::confined::{self, Confined};
use super::errors::with_options;
use super::notify::Manager;
use super::signals::{ignored_signals, resizes, signal_error};
use super::status::{CRASHED, say};
use super::terminal::Terminal;
use super::timeline::{self, ProcessStart};

/// `inputs` are the files that the command line has read; `timeline` is where the boot timeline goes, if there is to be
/// one. `make` makes the VM when everything of this program's is open.
pub(super) fn run(
    config: &Config,
    inputs: &[NamedFile<'_>],
    timeline: Option<(&Path, ProcessStart)>,
    make: impl FnOnce(&VmConfig, Attachments) -> Result<Vm, Error>,
) -> Result<ExitCode, Error> {
    // Before a file of this program gets the number of one that is not open.
    config.check_descriptors()?;
    let file = timeline.map(|(path, _)| path);
    if let Some(path) = file {
        timeline::format(path)?;
    }
    let outputs: Vec<NamedFile<'_>> = file
        .map(|path| ("boot-timeline", path))
        .into_iter()
        .collect();
    config.vm.check_outputs(&config.files(inputs, &outputs))?;
    let timeline = timeline
        .map(|(path, start)| timeline::Output::create(path, start, &config.vm))
        .transpose()?;
    allow_many_files();
    let inside = confined::with_paths_inside(config);
    let config = &inside;
    if let Some(cgroup) = &config.sandbox.cgroup {
        cgroup.join()?;
    }
    let confined = Confined::new(config)?;
    let manager = Manager::of_this_process();
    let mut consoles = Consoles::from(console("serial", config.serial())?);
    if let Some(target) = &config.console {
        let resized = resizes().map_err(signal_error)?;
        consoles.virtio = console("console", target)?.resized_by(resized);
    }
    #[cfg(feature = "control")]
    let control = config
        .control
        .as_deref()
        .map(ControlSocket::bind)
        .transpose()?;
    let mut targets = config.consoles();
    let on_stdio = targets.any(|(_, target)| *target == ConsoleTarget::Stdio);
    let ignored = ignored_signals();
    let signals = EndSignals::catch(ignored)?;
    let terminal = on_stdio.then(|| Terminal::find(ignored)).flatten();
    let mut attachments = Attachments::from(consoles);
    let confinement = confined.clone().map(|confined| confined as _);
    attachments.confinement = confinement;
    let mut vm = make(&config.vm, attachments)?;
    warn_consoles(config, &vm.plan().cmdline);
    for remark in &vm.plan().remarks {
        log::warn!("{}", with_options(remark));
    }
    signals.end(&mut vm);
    if config.control.is_none() {
        // Nobody asks for a restart or for a fork.
        vm.without_new_machines();
    }
    let (reached, plan) = (vm.timeline(), vm.plan().clone());
    let begin = |role: &'static str| {
        let confined = confined.clone();
        move || {
            if let Some(confined) = &confined {
                confined.begin_as(role);
            }
        }
    };
    // Fields drop in their order, after the guest's end, an error or a panic.
    let mut around = Around {
        notifier: manager
            .map(|manager| manager.runs(vm.handle(), begin("notify")))
            .transpose()?,
        // Its clients hear of the end.
        #[cfg(feature = "control")]
        control: control
            .map(|control| control.serve(vm.handle()))
            .transpose()?,
        // Restored then.
        terminal: terminal.map(|terminal| terminal.enter(begin("terminal"))),
        timeline,
        #[cfg(all(feature = "control", feature = "snapshot"))]
        ignored,
    };
    #[cfg(all(feature = "control", feature = "snapshot"))]
    let ended = super::forks::run(vm, &mut around);
    #[cfg(not(all(feature = "control", feature = "snapshot")))]
    let ended = vm.run();
    // However it ended; the guest's failure matters more than that of the file.
    let timeline = around.timeline.take();
    let written = timeline.map_or(Ok(()), |output| output.write(&reached, &plan));
    drop(around);
    let ended = ended?;
    written?;
    match ended {
        ExitReason::Crashed(crash) => {
            // With the report it stands in the log.
            if log::max_level() < log::LevelFilter::Warn {
                say(&format!("the guest crashed: {crash}"));
            }
            Ok(CRASHED.into())
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Says so when a Linux guest will be silent on the consoles that were asked for.
pub(super) fn warn_consoles(config: &Config, cmdline: &str) {
    let shown = config
        .console
        .as_ref()
        .is_some_and(|target| *target != ConsoleTarget::Null);
    match MainConsole::of(cmdline) {
        MainConsole::None if shown || *config.serial() == ConsoleTarget::Stdio => log::warn!(
            "the kernel command line has no console=, so a Linux guest prints nothing here; \
             `vmm-reference plan` shows the default"
        ),
        MainConsole::Other(name) if shown => log::warn!(
            "the kernel command line names console={name} last, so a Linux guest's main console is \
             not the one of --console; write console=hvc0 last in --append or --cmdline, or leave \
             --console away"
        ),
        MainConsole::Virtio(name) if config.console.is_none() => log::warn!(
            "the kernel command line names console={name} last, and there is no such console; add \
             --console, or name the serial console last (`vmm-reference plan` without --cmdline \
             and --append shows its name)"
        ),
        _ => {}
    }
}

fn console(field: &'static str, target: &ConsoleTarget) -> Result<Console, Error> {
    let opened = match target {
        ConsoleTarget::Stdio => Console::stdio(),
        ConsoleTarget::Null => Ok(Console::null()),
        ConsoleTarget::File(path) => Console::file(path),
    };
    opened.map_err(|error| match target {
        ConsoleTarget::File(path) => refused_output(field, path, error),
        _ => Error::Config {
            field: field.into(),
            value: target.to_string(),
            cause: error.to_string(),
            cure: "name a file that can be written, or null".to_owned(),
        },
    })
}

/// A VM with many vCPUs has as many files open; the soft limit is for programs that use select.
pub(super) fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Refused or not: what is really needed will tell.
    let _ = setrlimit(Resource::Nofile, raised);
}
