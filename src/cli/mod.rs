//! Options, exit status and error messages.

mod config;
#[cfg(feature = "control")]
mod ctl;
mod doctor;
mod errors;
#[cfg(feature = "config-file")]
mod file;
mod files;
#[cfg(feature = "completions")]
mod generate;
mod inspect;
#[cfg(feature = "config-file")]
mod locate;
#[cfg(feature = "control")]
mod metrics;
#[cfg(feature = "control")]
mod part;
mod plan;
#[cfg(feature = "control")]
mod report;
mod run;
mod terminal;
mod timeline;
mod usage;
mod values;

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use self::config::Config;
#[cfg(any(feature = "serial", feature = "virtio-console"))]
use self::config::ConsoleTarget;
use self::errors::Failure;
#[cfg(feature = "virtio-rng")]
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
#[cfg(feature = "virtio-balloon")]
use vmm_reference::BalloonConfig;
#[cfg(feature = "virtio-blk")]
use vmm_reference::BlkConfig;
#[cfg(feature = "virtio-net")]
use vmm_reference::NetConfig;
#[cfg(feature = "virtio-console")]
use vmm_reference::Overflow;
#[cfg(feature = "virtio")]
use vmm_reference::Transport;
#[cfg(feature = "virtio-vsock")]
use vmm_reference::VsockConfig;
use vmm_reference::{
    ConfigPath, Error, HugePages, Lean, MemoryBacking, MemorySize, NamedFile, OnReboot,
};

/// The VM could not be run: the host or KVM failed.
const FAILED: u8 = 1;
/// What was asked for cannot be done. clap uses the same status.
const USAGE: u8 = 2;
/// The guest crashed.
const CRASHED: u8 = 3;

const AFTER_HELP: &str = "\
Exit status:
  0  the guest powered off or asked for a reset, or the VM was ended on request
  1  the VMM failed (KVM or the host refused something)
  2  wrong usage, or a value that cannot be used
  3  the guest crashed (triple fault, crash event, a panic that it told of)

Keys, when stdin is a terminal:
  Ctrl-a x  end the VM      Ctrl-a h  help      Ctrl-a Ctrl-a  send Ctrl-a";

#[derive(Debug, Parser)]
#[command(version, about = usage::about(), after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    vm: VmArgs,
    /// What the VMM says on stderr about its own work
    #[arg(
        long,
        value_enum,
        default_value = "warn",
        global = true,
        value_name = "LEVEL"
    )]
    log_level: LogLevel,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prints the machine the same options would give, and what the guest is told
    Plan {
        #[command(flatten)]
        vm: Box<VmArgs>,
        #[command(flatten)]
        what: Box<plan::Options>,
    },
    /// Says what a kernel file is, and what it lacks to boot here
    Inspect(inspect::Options),
    /// Checks what this host offers, and how it runs a guest's kernel; says what is missing
    ///
    /// Each line begins with ok, with WARN for what only some VMs need, or with FAIL for what all need; the
    /// status is 1 when one fails.
    Doctor(doctor::Options),
    /// Asks a VM that runs with --control: pause, resume, status and more
    #[cfg(feature = "control")]
    Ctl(ctl::Options),
}

#[derive(Debug, Args)]
struct VmArgs {
    #[cfg(feature = "config-file")]
    #[arg(long, value_name = "FILE", help = usage::config())]
    config: Option<PathBuf>,
    /// Prints the configuration that all of this gives, as TOML, and ends
    #[cfg(feature = "config-file")]
    #[arg(long)]
    dump_config: bool,
    #[arg(long, value_name = "PATH", help = usage::kernel())]
    kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "PATH")]
    initrd: Option<PathBuf>,
    /// Kernel command line, instead of the platform's default (`plan` shows it)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = values::text::<String>())]
    cmdline: Option<String>,
    /// Text added to the kernel command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = values::text::<String>())]
    append: Option<String>,
    /// Guest RAM: MiB, or a number with K, M, G or T [default: 256]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = values::text::<MemorySize>())]
    guest_memory: Option<MemorySize>,
    /// Where guest RAM comes from: private memory, or a file in memory (memfd) that another process can
    /// share [default: anonymous]
    #[arg(long, value_name = "BACKING", value_parser = values::word::<MemoryBacking>())]
    memory_backing: Option<MemoryBacking>,
    /// Large pages for guest RAM: those that the kernel makes when it can, or of 2 MiB or 1 GiB from the host's
    /// pools (vm.nr_hugepages), all reserved at the start [default: off, what the host does by itself]
    #[arg(long, value_name = "PAGES", value_parser = values::word::<HugePages>())]
    huge_pages: Option<HugePages>,
    /// Lets the guest have more memory than the host's memory and swap: it will not use all of it
    #[arg(long)]
    overcommit: bool,
    /// Number of vCPUs [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = values::vcpus())]
    vcpus: Option<u32>,
    #[cfg(feature = "serial")]
    #[arg(long, value_name = "TARGET", help = usage::serial(), value_parser = values::text::<ConsoleTarget>())]
    serial: Option<ConsoleTarget>,
    /// A virtio console (hvc0), faster than the serial one: stdio, null or file=PATH
    #[cfg(feature = "virtio-console")]
    #[arg(long, value_name = "TARGET", num_args = 0..=1, require_equals = true, default_missing_value = "stdio", value_parser = values::text::<ConsoleTarget>())]
    console: Option<ConsoleTarget>,
    /// What becomes of the virtio console's output when its reader is too slow: the guest waits, or the
    /// oldest bytes are dropped, and counted [default: wait]
    #[cfg(feature = "virtio-console")]
    #[arg(long, value_name = "ACTION", value_parser = values::word::<Overflow>())]
    console_overflow: Option<Overflow>,
    /// A disk: PATH or path=PATH[,id=TEXT][,ro][,serial=TEXT][,engine=auto|io_uring|sync][,direct][,queues=N]
    /// [,queue-size=N][,discard=off][,bw=BYTES][,bw-burst=BYTES][,iops=N][,iops-burst=N], the limits
    /// per second; a value with a comma stands in double quotes; may be repeated
    #[cfg(feature = "virtio-blk")]
    #[arg(long, value_name = "DISK", value_parser = values::text::<BlkConfig>())]
    blk: Vec<BlkConfig>,
    /// A network device: NAME, or tap=NAME or fd=N with options [,id=TEXT][,mac=MAC][,mtu=N][,queues=N]
    /// [,queue-size=N][,bw=BYTES][,bw-burst=BYTES][,iops=N][,iops-burst=N]; the tap device is
    /// created if there is none; may be repeated
    #[cfg(feature = "virtio-net")]
    #[arg(long, value_name = "NET", value_parser = values::text::<NetConfig>())]
    net: Vec<NetConfig>,
    /// Sockets between host and guest: cid=N,path=SOCKET[,id=TEXT]. Programs of the host connect to SOCKET and
    /// write CONNECT PORT; the guest connects to SOCKET_PORT
    #[cfg(feature = "virtio-vsock")]
    #[arg(long, value_name = "VSOCK", value_parser = values::text::<VsockConfig>())]
    vsock: Option<VsockConfig>,
    /// A memory balloon: [target=SIZE][,id=TEXT][,deflate-on-oom][,free-page-reporting][,free-page-hinting]
    /// [,stats-interval=SECONDS]; the guest is left with SIZE
    #[cfg(feature = "virtio-balloon")]
    #[arg(long, value_name = "BALLOON", num_args = 0..=1, require_equals = true, default_missing_value = "", value_parser = values::text::<BalloonConfig>())]
    balloon: Option<BalloonConfig>,
    /// Random bytes of the host for the guest (virtio-rng) [default: on]
    #[cfg(feature = "virtio-rng")]
    #[arg(
        long,
        value_name = "on|off",
        value_parser = PossibleValuesParser::new(["on", "off"]).map(|word| word == "on"),
        hide_possible_values = true
    )]
    rng: Option<bool>,
    #[arg(
        long,
        value_name = "auto|on|off",
        help = usage::lean(),
        value_parser = values::word::<Lean>(),
        hide_possible_values = true
    )]
    lean: Option<Lean>,
    /// What a guest's reset does: end the VM, or start it again with fresh memory and the same
    /// disks and devices [default: exit]
    #[arg(long, value_name = "ACTION", value_parser = values::word::<OnReboot>())]
    on_reboot: Option<OnReboot>,
    /// How long a guest that was asked to power off by SIGTERM may take; 0: SIGTERM ends the VM at
    /// once [default: 30]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = values::seconds())]
    shutdown_timeout: Option<u32>,
    #[cfg(feature = "virtio")]
    #[arg(long, value_name = "TRANSPORT", help = usage::transport(), value_parser = values::transport())]
    transport: Option<Transport>,
    /// Takes commands on this Unix socket, which is made for this user only: `vmm-reference ctl PATH status`
    #[cfg(feature = "control")]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Writes where the time of the start went, when the VM ends: a page with bars (.html) or the
    /// numbers (.json)
    #[arg(long, value_name = "FILE")]
    boot_timeline: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Command {
    /// Whether what it prints is JSON.
    fn json(&self) -> bool {
        match self {
            Self::Plan { what, .. } => what.json,
            Self::Inspect(what) => what.json,
            Self::Doctor(what) => what.json,
            #[cfg(feature = "control")]
            Self::Ctl(what) => what.json,
        }
    }
}

impl VmArgs {
    /// What the file says, and over it what the command line says; and the file.
    fn config(self) -> Result<(Config, Option<File>), Error> {
        #[cfg(feature = "config-file")]
        let (mut all, file) = match &self.config {
            Some(path) => file::read(path).map(|(all, file)| (all, Some(file)))?,
            None => (Config::default(), None),
        };
        #[cfg(not(feature = "config-file"))]
        let (mut all, file): (_, Option<File>) = (Config::default(), None);
        #[cfg(feature = "serial")]
        {
            all.serial = self.serial.or(all.serial);
        }
        #[cfg(feature = "virtio-console")]
        {
            all.console = self.console.or(all.console);
        }
        #[cfg(feature = "control")]
        {
            all.control = self.control.or(all.control);
        }
        let mut config = all.vm;
        config.console = all.console.is_some();
        config.kernel = self.kernel.or(config.kernel);
        config.initrd = self.initrd.or(config.initrd);
        config.cmdline = self.cmdline.or(config.cmdline);
        config.append = self.append.or(config.append);
        config.guest_memory = self.guest_memory.unwrap_or(config.guest_memory);
        config.memory_backing = self.memory_backing.unwrap_or(config.memory_backing);
        config.huge_pages = self.huge_pages.unwrap_or(config.huge_pages);
        config.overcommit |= self.overcommit;
        config.vcpus = self.vcpus.unwrap_or(config.vcpus);
        #[cfg(feature = "virtio-console")]
        {
            config.console_overflow = self.console_overflow.unwrap_or(config.console_overflow);
        }
        #[cfg(feature = "virtio-blk")]
        if !self.blk.is_empty() {
            config.blk = self.blk;
        }
        #[cfg(feature = "virtio-net")]
        if !self.net.is_empty() {
            config.net = self.net;
        }
        #[cfg(feature = "virtio-vsock")]
        {
            config.vsock = self.vsock.or(config.vsock);
        }
        #[cfg(feature = "virtio-balloon")]
        {
            config.balloon = self.balloon.or(config.balloon);
        }
        #[cfg(feature = "virtio-rng")]
        {
            config.rng = self.rng.unwrap_or(config.rng);
        }
        config.lean = self.lean.unwrap_or(config.lean);
        config.on_reboot = self.on_reboot.unwrap_or(config.on_reboot);
        config.shutdown_timeout = self.shutdown_timeout.unwrap_or(config.shutdown_timeout);
        #[cfg(feature = "virtio")]
        {
            config.transport = self.transport.unwrap_or(config.transport);
        }
        all.vm = config;
        Ok((all, file))
    }

    /// Does something with the configuration and the files it came from, unless it is only to be printed.
    /// `given` are the options of the command line.
    fn then(
        self,
        given: &[String],
        act: impl FnOnce(&Config, &[NamedFile<'_>]) -> Result<ExitCode, Error>,
    ) -> Result<ExitCode, Failure> {
        #[cfg(feature = "config-file")]
        let (path, dump) = (self.config.clone(), self.dump_config);
        #[cfg(not(feature = "config-file"))]
        let (path, dump): (Option<PathBuf>, _) = (None, false);
        let (config, file) = self.config()?;
        let place = |field: &ConfigPath| {
            let of_file = !given.iter().any(|option| option == field.first());
            file.as_ref()
                .filter(|_| of_file)
                .and_then(|file| file.place_of(field))
        };
        let result = if dump {
            dump_config(&config)
        } else {
            let inputs = path.as_deref().map(|path| ("--config", path));
            usage::check_build(&config)
                .and_then(|()| config.check())
                .and_then(|()| act(&config, inputs.as_slice()))
        };
        result.map_err(|error| Failure::of(error, &config.vm, place))
    }
}

#[cfg(feature = "config-file")]
use self::file::{File, dump as dump_config};

/// A configuration file, of which this build reads none.
#[cfg(not(feature = "config-file"))]
enum File {}

#[cfg(not(feature = "config-file"))]
impl File {
    fn place_of(&self, _: &ConfigPath) -> Option<String> {
        match *self {}
    }
}

#[cfg(not(feature = "config-file"))]
fn dump_config(_: &Config) -> Result<ExitCode, Error> {
    Ok(ExitCode::SUCCESS)
}

/// The options that stand on the command line, behind a command where there is one.
fn given(matches: &ArgMatches) -> Vec<String> {
    let of_command = matches.subcommand().map(|(_, matches)| matches);
    let matches = of_command.unwrap_or(matches);
    let names = matches.ids().map(|id| id.as_str());
    names
        .filter(|name| matches.value_source(name) == Some(ValueSource::CommandLine))
        .map(|name| name.replace('_', "-"))
        .collect()
}

pub(crate) fn main() -> ExitCode {
    let start = timeline::ProcessStart::now();
    #[cfg(feature = "completions")]
    if let Some(code) = generate::asked() {
        return code;
    }
    let arguments: Vec<OsString> = env::args_os().collect();
    let parsed = Cli::command()
        .try_get_matches_from(&arguments)
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, given(&matches))));
    let (cli, given) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return usage::end(&error, &arguments),
    };
    env_logger::Builder::new()
        .filter_level(match cli.log_level {
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
    if let Err(error) = run::ignore_file_size_signal() {
        log::warn!("{error}");
    }
    let json = cli.command.as_ref().is_some_and(Command::json);
    #[cfg(feature = "control")]
    let asks_a_vm = matches!(cli.command, Some(Command::Ctl(_)));
    #[cfg(not(feature = "control"))]
    let asks_a_vm = false;
    let result = match cli.command {
        None => {
            let file = cli.vm.boot_timeline.clone();
            let timeline = file.as_deref().map(|path| (path, start));
            cli.vm
                .then(&given, |config, inputs| run::run(config, inputs, timeline))
        }
        Some(Command::Plan { vm, what }) => {
            let timeline = vm.boot_timeline.clone();
            vm.then(&given, |config, inputs| {
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

/// A line on stderr. Whether somebody reads it changes nothing.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
