//! Options, exit status and error messages.

mod doctor;
#[cfg(feature = "config-file")]
mod file;
mod files;
#[cfg(feature = "completions")]
mod generate;
mod inspect;
mod plan;
mod run;
mod terminal;
mod timeline;

use std::error::Error as _;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vmm_reference::{
    BalloonConfig, BlkConfig, ConsoleTarget, Error, Lean, MemorySize, NetConfig, OnReboot,
    Overflow, Transport, VmConfig, VsockConfig,
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
  3  the guest crashed (triple fault, crash event)

Keys, when stdin is a terminal:
  Ctrl-a x  end the VM      Ctrl-a h  help      Ctrl-a Ctrl-a  send Ctrl-a";

/// Runs a virtual machine with KVM. Without --kernel, a built-in guest says hello.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
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
    /// Checks what this host offers and says what is missing
    Doctor,
}

#[derive(Debug, Args)]
struct VmArgs {
    /// A configuration in TOML or JSON, by the name's ending; options given here replace what it
    /// says, --blk and --net all of its disks and network devices
    #[cfg(feature = "config-file")]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Prints the configuration that all of this gives, as TOML, and ends
    #[cfg(feature = "config-file")]
    #[arg(long)]
    dump_config: bool,
    /// Kernel image: bzImage, ELF or Image, packed or not, found by content [default: a built-in
    /// guest]
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "PATH")]
    initrd: Option<PathBuf>,
    /// Kernel command line, instead of the platform's default (`plan` shows it)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Text added to the kernel command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
    /// Guest RAM: MiB, or a number with K, M, G or T [default: 256]
    #[arg(long, value_name = "SIZE")]
    guest_memory: Option<MemorySize>,
    /// Number of vCPUs [default: 1]
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Serial console: stdio, null or file=PATH [default: stdio; null when --console is stdio]
    #[arg(long, value_name = "TARGET")]
    serial: Option<ConsoleTarget>,
    /// A virtio console (hvc0), faster than the serial one: stdio, null or file=PATH
    #[arg(long, value_name = "TARGET", num_args = 0..=1, require_equals = true, default_missing_value = "stdio")]
    console: Option<ConsoleTarget>,
    /// What becomes of the virtio console's output when its reader is too slow: the guest waits, or the
    /// oldest bytes are dropped, and counted [default: wait]
    #[arg(long, value_enum, value_name = "ACTION")]
    console_overflow: Option<WhenFull>,
    /// A disk: PATH or path=PATH[,ro][,serial=TEXT][,engine=auto|io_uring|sync][,direct][,queues=N]
    /// [,queue-size=N][,discard=off][,bw=BYTES][,bw-burst=BYTES][,iops=N][,iops-burst=N], the limits
    /// per second; may be repeated
    #[arg(long, value_name = "DISK")]
    blk: Vec<BlkConfig>,
    /// A network device: NAME, or tap=NAME or fd=N with options [,mac=MAC][,mtu=N][,queues=N]
    /// [,queue-size=N][,bw=BYTES][,bw-burst=BYTES][,iops=N][,iops-burst=N]; the tap device is
    /// created if there is none; may be repeated
    #[arg(long, value_name = "NET")]
    net: Vec<NetConfig>,
    /// Sockets between host and guest: cid=N,path=SOCKET. Programs of the host connect to SOCKET and
    /// write CONNECT PORT; the guest connects to SOCKET_PORT
    #[arg(long, value_name = "VSOCK")]
    vsock: Option<VsockConfig>,
    /// A memory balloon: [target=SIZE][,deflate-on-oom][,free-page-reporting]; the guest is left
    /// with SIZE
    #[arg(long, value_name = "BALLOON", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    balloon: Option<BalloonConfig>,
    /// Random bytes of the host for the guest (virtio-rng) [default: on]
    #[arg(long, value_name = "on|off", value_parser = on_or_off)]
    rng: Option<bool>,
    /// Leaves out what current kernels can do without, for a shorter life: on x86_64 the interval timer
    /// (PIT) and the PICs; the I/O APIC is the VMM's, not KVM's. auto: for the built-in guest, and for a
    /// Linux that is new enough unless its command line needs them; `plan` says which and why
    /// [default: auto]
    #[arg(
        long,
        value_enum,
        value_name = "auto|on|off",
        hide_possible_values = true
    )]
    lean: Option<LeanArg>,
    /// What a guest's reset does: end the VM, or start it again with fresh memory and the same
    /// disks and devices [default: exit]
    #[arg(long, value_enum, value_name = "ACTION")]
    on_reboot: Option<Reboot>,
    /// How long a guest that was asked to power off by SIGTERM may take; 0: SIGTERM ends the VM at
    /// once [default: 30]
    #[arg(long, value_name = "SECONDS")]
    shutdown_timeout: Option<u32>,
    /// How virtio devices reach the guest: on a PCI bus, or as registers of their own, for kernels
    /// without PCI [default: pci]
    #[arg(long, value_enum, value_name = "TRANSPORT")]
    transport: Option<Carrier>,
    /// Writes where the time of the start went, when the VM ends: a page with bars (.html) or the
    /// numbers (.json)
    #[arg(long, value_name = "FILE")]
    boot_timeline: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Carrier {
    Mmio,
    Pci,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LeanArg {
    Auto,
    On,
    Off,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum WhenFull {
    Wait,
    Drop,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Reboot {
    Exit,
    Restart,
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

impl VmArgs {
    /// What the file says, and over it what the command line says.
    fn config(self) -> Result<VmConfig, Error> {
        #[cfg(feature = "config-file")]
        let (mut config, serial_named) = match &self.config {
            Some(path) => file::read(path)?,
            None => (VmConfig::default(), false),
        };
        #[cfg(not(feature = "config-file"))]
        let (mut config, serial_named) = (VmConfig::default(), false);
        config.kernel = self.kernel.or(config.kernel);
        config.initrd = self.initrd.or(config.initrd);
        config.cmdline = self.cmdline.or(config.cmdline);
        config.append = self.append.or(config.append);
        config.guest_memory = self.guest_memory.unwrap_or(config.guest_memory);
        config.vcpus = self.vcpus.unwrap_or(config.vcpus);
        config.console = self.console.or(config.console);
        if !self.blk.is_empty() {
            config.blk = self.blk;
        }
        if !self.net.is_empty() {
            config.net = self.net;
        }
        config.vsock = self.vsock.or(config.vsock);
        config.balloon = self.balloon.or(config.balloon);
        config.rng = self.rng.unwrap_or(config.rng);
        config.lean = match self.lean {
            Some(LeanArg::Auto) => Lean::Auto,
            Some(LeanArg::On) => Lean::On,
            Some(LeanArg::Off) => Lean::Off,
            None => config.lean,
        };
        config.console_overflow = match self.console_overflow {
            Some(WhenFull::Wait) => Overflow::Wait,
            Some(WhenFull::Drop) => Overflow::Drop,
            None => config.console_overflow,
        };
        config.on_reboot = match self.on_reboot {
            Some(Reboot::Exit) => OnReboot::Exit,
            Some(Reboot::Restart) => OnReboot::Restart,
            None => config.on_reboot,
        };
        config.shutdown_timeout = self.shutdown_timeout.unwrap_or(config.shutdown_timeout);
        config.transport = match self.transport {
            Some(Carrier::Mmio) => Transport::Mmio,
            Some(Carrier::Pci) => Transport::Pci,
            None => config.transport,
        };
        config.serial = match self.serial {
            Some(target) => target,
            None if serial_named => config.serial,
            None if config.console == Some(ConsoleTarget::Stdio) => ConsoleTarget::Null,
            None => ConsoleTarget::Stdio,
        };
        Ok(config)
    }

    /// Does something with the configuration, unless it is only to be printed.
    fn then(
        self,
        act: impl FnOnce(&VmConfig) -> Result<ExitCode, Error>,
    ) -> Result<ExitCode, Error> {
        #[cfg(feature = "config-file")]
        if self.dump_config {
            return file::dump(&self.config()?);
        }
        act(&self.config()?)
    }
}

fn on_or_off(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off"),
    }
}

pub(crate) fn main() -> ExitCode {
    let start = timeline::ProcessStart::now();
    #[cfg(feature = "completions")]
    if let Some(code) = generate::asked() {
        return code;
    }
    let cli = Cli::parse();
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
    let result = match cli.command {
        None => {
            let file = cli.vm.boot_timeline.clone();
            let timeline = file.as_deref().map(|path| (path, start));
            cli.vm.then(|config| run::run(config, timeline))
        }
        Some(Command::Plan { vm, what }) => vm.then(|config| plan::print(config, &what)),
        Some(Command::Inspect(what)) => inspect::print(&what),
        Some(Command::Doctor) => doctor::check(),
    };
    result.unwrap_or_else(|error| {
        report(&error);
        match error {
            Error::Config { .. } | Error::Plan(_) | Error::Boot { .. } => USAGE.into(),
            _ => FAILED.into(),
        }
    })
}

/// The chain of causes on one line, the cure on the next, then the report of a failed vCPU.
fn report(error: &Error) {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    say(&format!("error: {text}"));
    if let Some(cure) = error.cure() {
        say(&format!("  cure: {cure}"));
    }
    if let Some(report) = error.report().filter(|report| !report.is_empty()) {
        say(report);
    }
}

/// A line on stderr. Whether somebody reads it changes nothing.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
