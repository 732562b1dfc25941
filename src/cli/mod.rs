//! Options, exit status and error messages.

mod arguments;
mod around;
mod config;
mod confined;
#[cfg(feature = "control")]
mod connection;
#[cfg(feature = "snapshot")]
mod copies;
#[cfg(feature = "control")]
mod ctl;
mod doctor;
mod errors;
#[cfg(all(feature = "control", feature = "snapshot"))]
mod fate;
#[cfg(feature = "config-file")]
mod file;
#[cfg(not(feature = "config-file"))]
#[path = "no_file.rs"]
mod file;
mod files;
#[cfg(all(feature = "control", feature = "snapshot"))]
mod fork;
#[cfg(all(feature = "control", feature = "snapshot"))]
mod forks;
#[cfg(feature = "completions")]
mod generate;
mod help;
mod inspect;
#[cfg(feature = "config-file")]
mod locate;
#[cfg(feature = "snapshot")]
mod lost_memory;
#[cfg(feature = "control")]
mod metrics;
#[cfg(feature = "snapshot")]
mod new_file;
mod notify;
mod plan;
#[cfg(feature = "control")]
mod report;
#[cfg(feature = "control")]
mod request;
#[cfg(feature = "snapshot")]
mod restore;
#[cfg(feature = "snapshot")]
mod restored;
mod run;
mod sandbox;
#[cfg(all(feature = "control", feature = "snapshot"))]
mod save;
mod signals;
#[cfg(feature = "snapshot")]
mod snapshot;
mod status;
mod terminal;
mod timeline;
mod usage;
mod values;

use std::env;
use std::ffi::OsString;
#[cfg(not(feature = "config-file"))]
use std::path::PathBuf;
use std::process::ExitCode;

use vmm_reference::{ConfigPath, Error, NamedFile, Vm};

use self::arguments::{Cli, Command, LogLevel, VmArgs};
use self::config::Config;
use self::errors::Failure;
use self::status::{FAILED, USAGE};

pub(crate) fn main() -> ExitCode {
    let start = timeline::ProcessStart::now();
    #[cfg(feature = "completions")]
    if let Some(code) = generate::asked() {
        return code;
    }
    let arguments: Vec<OsString> = env::args_os().collect();
    let _begun = confined::begin(&arguments);
    let (cli, given) = match Cli::read(&arguments) {
        Ok(parsed) => parsed,
        Err(error) => return usage::end(&error, &arguments),
    };
    env_logger::Builder::new()
        .filter_level(match cli.start.log.log_level {
            LogLevel::Off => log::LevelFilter::Off,
            LogLevel::Error => log::LevelFilter::Error,
            LogLevel::Warn => log::LevelFilter::Warn,
            LogLevel::Info => log::LevelFilter::Info,
            LogLevel::Debug => log::LevelFilter::Debug,
            LogLevel::Trace => log::LevelFilter::Trace,
        })
        // It logs every wrong value that a guest writes to a queue's registers, without a limit; our
        // own messages about queues have one.
        .filter_module("virtio_queue", log::LevelFilter::Off)
        .format_timestamp(None)
        .format_target(false)
        .init();
    if let Err(error) = signals::ignore_file_size_signal() {
        log::warn!("{error}");
    }
    let json = cli.command.as_ref().is_some_and(Command::json);
    #[cfg(feature = "control")]
    let asks_a_vm = matches!(cli.command, Some(Command::Ctl(_)));
    #[cfg(not(feature = "control"))]
    let asks_a_vm = false;
    let result = match cli.command {
        None => {
            let file = cli.start.vm.boot_timeline.clone();
            let timeline = file.as_deref().map(|path| (path, start));
            with_config(cli.start.vm, &given, |config, inputs| {
                run::run(config, inputs, timeline, |vm, attachments| {
                    Vm::new(vm, attachments)
                })
            })
        }
        #[cfg(feature = "snapshot")]
        Some(Command::Restore(what)) => restore::run(what),
        #[cfg(feature = "snapshot")]
        Some(Command::Snapshot(what)) => {
            let done = snapshot::run(&what).map(|()| ExitCode::SUCCESS);
            done.map_err(Failure::from)
        }
        Some(Command::Plan { vm, what }) => {
            let timeline = vm.boot_timeline.clone();
            with_config(*vm, &given, |config, inputs| {
                plan::print(config, &what, inputs, timeline.as_deref())
            })
        }
        Some(Command::Inspect(what)) => inspect::print(&what).map_err(Failure::from),
        Some(Command::Doctor(what)) => doctor::check(&what).map_err(Failure::from),
        #[cfg(feature = "control")]
        Some(Command::Ctl(what)) => ctl::run(&what).map_err(Failure::from),
    };
    result.unwrap_or_else(|failure| {
        let (status, kind) = match *failure.error {
            Error::Config { .. } | Error::Refused { .. } | Error::Plan(_) | Error::Boot { .. } => {
                (USAGE, "usage")
            }
            _ if asks_a_vm => (FAILED, "connection"),
            _ => (FAILED, "host"),
        };
        if json {
            failure.report_as_json(kind);
        } else {
            failure.report();
        }
        status.into()
    })
}

/// Does something with the configuration that a command line gives and the files it came from, unless it is only to
/// be printed. `given` are the options of the command line.
fn with_config(
    vm: VmArgs,
    given: &[String],
    act: impl FnOnce(&Config, &[NamedFile<'_>]) -> Result<ExitCode, Error>,
) -> Result<ExitCode, Failure> {
    #[cfg(feature = "config-file")]
    let (path, dump) = (vm.config.clone(), vm.dump_config);
    #[cfg(not(feature = "config-file"))]
    let (path, dump): (Option<PathBuf>, _) = (None, false);
    let (config, file) = match &path {
        Some(path) => file::read(path).map(|(config, file)| (config, Some(file)))?,
        None => (Config::default(), None),
    };
    let config = vm.over(config);
    let place = |field: &ConfigPath| {
        let of_file = !given.iter().any(|option| option == field.first());
        file.as_ref()
            .filter(|_| of_file)
            .and_then(|file| file.place_of(field))
    };
    let result = if dump {
        file::dump(&config)
    } else {
        let inputs = path.as_deref().map(|path| ("--config", path));
        usage::check_build(&config)
            .and_then(|()| config.check())
            .and_then(|()| act(&config, inputs.as_slice()))
    };
    result.map_err(|error| Failure::of(error, &config.vm, place))
}
