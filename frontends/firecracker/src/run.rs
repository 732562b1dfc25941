//! The process: from its arguments to its exit status.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use rustix::time::{ClockId, clock_gettime};
use vmm_reference::{Command, ExitReason, SocketServer, Vm};

use crate::api::service::Api;
use crate::arguments::{self, ArgumentError, Arguments, Invocation, Seccomp, StartTimes};
use crate::forks::{self, Around};
use crate::machine::{Begin, Machine, Options, Order};
use crate::metrics::{self, Ask};
use crate::mmds::Mmds;
use crate::seccomp::{FilterFault, Filters};
use crate::texts::{Fault, StateFault, start as start_text};
use crate::version::VERSION;
use crate::{logger, saved, signals, sockets, terminal};

/// Why the process ends with another status than 0.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Arguments(#[from] ArgumentError),
    #[error("Could not initialize logger: Failed to open target file: {0}")]
    Logger(io::Error),
    #[error("Failed to register signal handlers: {0}")]
    Signals(io::Error),
    #[error(
        "Could not initialize metrics: Cannot initialize the metrics system due to bad user input: {0}"
    )]
    Metrics(metrics::ConfigureError),
    #[error("Seccomp error: {0}")]
    Seccomp(#[from] FilterFault),
    #[error("The host has no random bytes: {0}")]
    Random(io::Error),
    #[error("The metadata of {} cannot be taken: {cause}", .path.display())]
    Metadata { path: PathBuf, cause: String },
    #[error("{}: {error}", .path.display())]
    ConfigFile { path: PathBuf, error: io::Error },
    #[error(
        "RunWithApiError error: Failed to open the API socket at: {}. Check that it is not already used.",
        .0.display()
    )]
    SocketInUse(PathBuf),
    #[error("RunWithApiError error: Failed to bind and run the HTTP server: {0}")]
    Socket(String),
    #[error(
        "Failed to build MicroVM from Json: Configuration for VMM from one single json failed: {0}"
    )]
    Json(String),
    #[error("Failed to build MicroVM from Json: Could not Start MicroVM from one single json: {0}")]
    Start(String),
    #[error("{0}")]
    Load(String),
    #[error("SnapshotVersion error: {0}")]
    Describe(StateFault),
    #[error("MicroVM stopped with an error: {0}")]
    Stopped(String),
}

impl Failure {
    fn status(&self) -> u8 {
        match self {
            Self::Arguments(ArgumentError::Usage(_)) => 153,
            Self::Arguments(ArgumentError::Level(_)) => 152,
            _ => 1,
        }
    }
}

/// Does what the arguments of the process say, and gives its exit status.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = env::args_os().skip(1);
    let arguments: Vec<String> = arguments
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let invocation = match arguments::parse(&arguments) {
        Ok(invocation) => invocation,
        Err(error) => {
            logger::start("anonymous-instance");
            return failed(&error.into());
        }
    };
    let version = format!(
        "Firecracker v{VERSION}\nvmm-reference v{}\n",
        env!("CARGO_PKG_VERSION")
    );
    match invocation {
        Invocation::Version => print(&version),
        Invocation::Help => print(&format!("{version}\n{}", arguments::help())),
        Invocation::SnapshotVersion => print(&format!("{}\n", saved::version())),
        // One that is read has this program's.
        Invocation::DescribeSnapshot(path) => match saved::read(&path) {
            Ok(_) => print(&format!("{}\n", saved::version())),
            Err(fault) => failed(&Failure::Describe(fault)),
        },
        Invocation::Run(arguments) => match run(*arguments) {
            Ok(()) => {
                log::info!("Firecracker exiting successfully. exit_code=0");
                ExitCode::SUCCESS
            }
            Err(failure) => failed(&failure),
        },
    }
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn failed(failure: &Failure) -> ExitCode {
    log::error!("{failure}");
    // Who has closed stderr does not want to know.
    let _ = writeln!(io::stderr(), "Error: {failure}");
    let status = failure.status();
    log::error!("Firecracker exiting with error. exit_code={status}");
    status.into()
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    logger::start(&arguments.id);
    logger::configure(arguments.logger).map_err(Failure::Logger)?;
    catch_panics();
    log::info!("Running Firecracker v{VERSION}");
    let filters = match &arguments.seccomp {
        Seccomp::Off => None,
        Seccomp::Usual => Some(Filters::usual()),
        Seccomp::File(path) => Some(Filters::of_file(path)?),
    };
    let filters = filters.map(Arc::new);
    if filters.is_some() {
        jail::warm_up();
    }
    let clock = signals::start(filters.is_some()).map_err(Failure::Signals)?;
    if let Some(filters) = &filters {
        filters.begin();
    }
    if let Some(config) = arguments.metrics {
        metrics::configure(config, &arguments.id).map_err(Failure::Metrics)?;
    }
    let listener = match arguments.no_api {
        true => None,
        false => Some(bind(&arguments.api_sock)?),
    };
    let (builder, builds) = channel();
    let options = Options {
        id: arguments.id,
        boot_timer: arguments.boot_timer,
        pci: arguments.enable_pci,
        filters: filters.clone(),
    };
    let mmds = Mmds::new(arguments.mmds_limit).map_err(Failure::Random)?;
    let mut machine = Machine::new(options, mmds, builder);
    if let Some(path) = &arguments.metadata {
        metadata(path, &machine)?;
    }
    let config = arguments.config_file.as_deref();
    let vm = config
        .map(|path| configured(path, &mut machine))
        .transpose()?;
    let payload_limit = arguments.payload_limit;
    let forks = machine.forks();
    let serve = |listener| {
        let api = Api::new(machine, payload_limit, filters);
        SocketServer::start("fc_api", listener, api)
    };
    let server = listener.map(serve).transpose();
    let server = server.map_err(|error| Failure::Socket(error.chain()))?;
    if server.is_some() {
        log::info!("API server started.");
        report_start(arguments.start);
    }
    let mut vm = match vm {
        Some(vm) => vm,
        None => built(&builds)?,
    };
    if server.is_none() {
        // A guest's reset is its end, and nobody asks for a fork.
        vm.without_new_machines();
    }
    // The first line comes with the start, which clients read that look into a file once. Nothing runs yet that could
    // be asked.
    let _ = metrics::write(Ask::Nobody);
    terminal::enter_raw();
    let mut around = Around {
        server,
        clock: Some(clock),
        forks,
        payload_limit,
    };
    let ended = forks::run(vm, &mut around);
    terminal::restore();
    log::info!("Vmm is stopping.");
    // What it has answered is fetched first.
    drop(around.server);
    let _ = metrics::write(Ask::Machine);
    match ended {
        Ok(ExitReason::Crashed(crash)) => {
            Err(Failure::Stopped(format!("{crash}\n{}", crash.report)))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::Stopped(error.chain())),
    }
}

/// A panic is told in the log and in the metrics.
fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        log::error!("Firecracker {info}");
        terminal::restore();
        metrics::set("vmm", "panic_count", 1);
        let _ = metrics::write(Ask::Nobody);
    }));
}

/// The API's socket. It stays where it is when the process ends.
fn bind(path: &Path) -> Result<UnixListener, Failure> {
    let listener = sockets::listen(path).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse | io::ErrorKind::AlreadyExists => {
            Failure::SocketInUse(path.to_owned())
        }
        _ => Failure::Socket(format!("IO error: {error}")),
    })?;
    log::info!("Listening on API socket ({path:?}).");
    Ok(listener)
}

/// How long it took to get here, as whoever started the process measures it.
fn report_start(start: StartTimes) {
    let micros = |clock| {
        let time = clock_gettime(clock);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        seconds * 1_000_000 + u64::try_from(time.tv_nsec).unwrap_or_default() / 1000
    };
    if let Some(wall) = start.wall {
        let took = micros(ClockId::Monotonic).saturating_sub(wall);
        metrics::set("api_server", "process_startup_time_us", took);
    }
    if let Some(cpu) = start.cpu {
        let own = micros(ClockId::ProcessCPUTime).saturating_sub(cpu);
        let took = own.saturating_add(start.parent_cpu.unwrap_or_default());
        metrics::set("api_server", "process_startup_time_cpu_us", took);
    }
}

/// Metadata of a file, before anything else is said of the machine.
fn metadata(path: &Path, machine: &Machine) -> Result<(), Failure> {
    let wrong = |cause: String| Failure::Metadata {
        path: path.to_owned(),
        cause,
    };
    let bytes = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let data = serde_json::from_slice(&bytes)
        .map_err(|error| wrong(format!("it is no valid JSON: {error}")))?;
    machine
        .put_metadata(data)
        .map_err(|fault| wrong(fault.to_string()))?;
    log::info!("Successfully added metadata to mmds from file");
    Ok(())
}

/// The machine of a configuration file, built.
fn configured(path: &Path, machine: &mut Machine) -> Result<Vm, Failure> {
    let bytes = fs::read(path).map_err(|error| Failure::ConfigFile {
        path: path.to_owned(),
        error,
    })?;
    let config = serde_json::from_slice(&bytes)
        .map_err(|error| Failure::Json(format!("Invalid JSON: {error}")))?;
    let wrong = |fault: Fault| Failure::Json(fault.to_string());
    machine.configure(config).map_err(wrong)?;
    let (config, attachments) = machine.prepare().map_err(wrong)?;
    let vm = Vm::new(&config, attachments).and_then(|vm| {
        machine.is_built(vm.handle())?;
        Ok(vm)
    });
    let vm = vm.map_err(|error| Failure::Start(start_text(&error)))?;
    log::info!("Successfully started microvm that was configured from one single json");
    Ok(vm)
}

/// Waits until a machine is asked for that can be built.
fn built(orders: &Receiver<Order>) -> Result<Vm, Failure> {
    loop {
        let order = orders
            .recv()
            .map_err(|_| Failure::Socket("the thread of the API is gone".to_owned()))?;
        let build = match order {
            Order::Build(build) => build,
            Order::GiveUp(fault) => return Err(Failure::Load(fault)),
        };
        let vm = match build.begin {
            Begin::Kernel(config) => Vm::new(&config, build.attachments),
            Begin::Saved(snapshot, memory) => Vm::restore(*snapshot, memory, build.attachments),
        };
        let vm = vm.and_then(|vm| {
            let handle = vm.handle();
            let events = handle.subscribe()?;
            Ok((vm, handle, events))
        });
        match vm {
            Ok((vm, handle, events)) => {
                if build.paused {
                    // It does not run yet, so nothing keeps it from that.
                    let _ = handle.command(Command::Pause {});
                }
                // Whoever asked waits.
                let _ = build.answer.send(Ok((handle, events)));
                return Ok(vm);
            }
            Err(error) => {
                let _ = build.answer.send(Err(error));
            }
        }
    }
}
