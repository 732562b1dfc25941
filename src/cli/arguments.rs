//! What the command line takes, as data.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
#[cfg(feature = "virtio-balloon")]
use vmm_reference::BalloonConfig;
#[cfg(feature = "virtio-blk")]
use vmm_reference::BlkConfig;
#[cfg(all(feature = "snapshot", feature = "virtio-blk"))]
use vmm_reference::BlkReplacement;
#[cfg(feature = "virtio-net")]
use vmm_reference::NetConfig;
#[cfg(all(feature = "snapshot", feature = "virtio-net"))]
use vmm_reference::NetReplacement;
#[cfg(feature = "virtio-console")]
use vmm_reference::Overflow;
#[cfg(feature = "snapshot")]
use vmm_reference::RestoredClock;
#[cfg(feature = "virtio")]
use vmm_reference::Transport;
#[cfg(feature = "virtio-vsock")]
use vmm_reference::VsockConfig;
#[cfg(all(feature = "snapshot", feature = "virtio-vsock"))]
use vmm_reference::VsockReplacement;
use vmm_reference::{
    ARCHITECTURES, HugePages, Lean, MemoryBacking, MemorySize, NamedFile, OnReboot,
};

use super::config::Config;
#[cfg(any(feature = "serial", feature = "virtio-console"))]
use super::config::ConsoleTarget;
#[cfg(feature = "control")]
use super::request::CtlOptions;
#[cfg(feature = "snapshot")]
use super::restored::RestoredMemory;
use super::sandbox::SandboxArgs;
use super::{help, values};

#[derive(Debug, Parser)]
#[command(version, about = help::about(), after_help = help::AFTER_HELP, args_conflicts_with_subcommands = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) start: Start,
}

/// What the start of a VM takes, which has no command.
#[derive(Debug, Args)]
pub(super) struct Start {
    #[command(flatten)]
    pub(super) vm: VmArgs,
    #[command(flatten)]
    pub(super) log: LogArgs,
}

#[derive(Debug, Args)]
pub(super) struct LogArgs {
    /// What the VMM says on stderr about its own work
    #[arg(
        long,
        value_enum,
        default_value = "warn",
        global = true,
        value_name = "LEVEL"
    )]
    pub(super) log_level: LogLevel,
}

/// What `restore` takes.
#[cfg(feature = "snapshot")]
#[derive(Debug, Args)]
struct Restore {
    #[command(flatten)]
    options: RestoreOptions,
    #[command(flatten)]
    log: LogArgs,
}

/// Reads arguments as those of a command that stands alone. One that is wrong is to hear of the other commands, so
/// there is no help here.
fn alone<T: Args>(arguments: &[OsString]) -> Option<Result<(T, Vec<String>), clap::Error>> {
    let command = T::augment_args(clap::Command::new("")).disable_help_flag(true);
    let matches = command.try_get_matches_from(arguments).ok()?;
    Some(T::from_arg_matches(&matches).map(|read| (read, given(&matches))))
}

impl Cli {
    /// What the command line says, and the options that stand on it, behind a command where there is one.
    ///
    /// # Errors
    /// What the parser says, help and version included.
    pub(super) fn read(arguments: &[OsString]) -> Result<(Self, Vec<String>), clap::Error> {
        // To put the options of all commands together takes longer than to read those of one: a VM that starts does it
        // only where they are wrong.
        match arguments.get(1).and_then(|first| first.to_str()) {
            #[cfg(feature = "snapshot")]
            Some("restore") => {
                if let Some(read) = arguments.get(1..).and_then(alone) {
                    let (Restore { options, log }, given) = read?;
                    let (command, vm) = (Some(Command::Restore(options)), VmArgs::default());
                    let start = Start { vm, log };
                    return Ok((Self { command, start }, given));
                }
            }
            // It is a command, or nothing.
            Some(word) if !word.starts_with('-') => {}
            _ => {
                if let Some(read) = alone(arguments) {
                    let (start, given) = read?;
                    let command = None;
                    return Ok((Self { command, start }, given));
                }
            }
        }
        let matches = Self::command().try_get_matches_from(arguments)?;
        Ok((Self::from_arg_matches(&matches)?, given(&matches)))
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Prints the machine the same options would give, and what the guest is told
    Plan {
        #[command(flatten)]
        vm: Box<VmArgs>,
        #[command(flatten)]
        what: Box<PlanOptions>,
    },
    /// Says what a kernel file is, and what it lacks to boot here; or what the saved VM in a folder is
    Inspect(InspectOptions),
    /// Checks what this host offers, and how it runs a guest's kernel; says what is missing
    ///
    /// Each line begins with ok, with WARN for what only some VMs need, or with FAIL for what all need; the
    /// status is 1 when one fails.
    Doctor(DoctorOptions),
    /// Goes on where a saved VM was (`ctl PATH snapshot FOLDER`)
    #[cfg(feature = "snapshot")]
    Restore(RestoreOptions),
    /// What can be done to a saved VM
    #[cfg(feature = "snapshot")]
    #[command(subcommand)]
    Snapshot(SnapshotOptions),
    /// Asks a VM that runs with --control: pause, resume, status and more
    #[cfg(feature = "control")]
    Ctl(CtlOptions),
}

#[derive(Debug, Default, Args)]
pub(super) struct VmArgs {
    #[cfg(feature = "config-file")]
    #[arg(long, value_name = "FILE", help = help::config())]
    pub(super) config: Option<PathBuf>,
    /// Prints the configuration that all of this gives, as TOML, and ends
    #[cfg(feature = "config-file")]
    #[arg(long)]
    pub(super) dump_config: bool,
    #[arg(long, value_name = "PATH", help = help::kernel())]
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
    #[arg(long, value_name = "TARGET", help = help::serial(), value_parser = values::text::<ConsoleTarget>())]
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
    /// [,queue-size=N][,discard=off][,lock=off][,bw=BYTES][,bw-burst=BYTES][,bw-refill=MS][,bw-once=BYTES][,iops=N]
    /// [,iops-burst=N][,iops-refill=MS][,iops-once=N], the limits
    /// per second; a value with a comma stands in double quotes; may be repeated
    #[cfg(feature = "virtio-blk")]
    #[arg(long, value_name = "DISK", value_parser = values::text::<BlkConfig>())]
    blk: Vec<BlkConfig>,
    /// A network device: NAME, or tap=NAME or fd=N with options [,id=TEXT][,mac=MAC][,mtu=N][,queues=N]
    /// [,queue-size=N], limits as for --blk, and with rx- or tx- in front for one direction; the tap device is
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
        value_parser = values::on_off(),
        hide_possible_values = true
    )]
    rng: Option<bool>,
    /// How many of them: [bw=BYTES][,iops=N] and more, as for --blk [default: no limit]
    #[cfg(feature = "virtio-rng")]
    #[arg(long, value_name = "LIMITS", value_parser = values::text::<vmm_reference::Limits>())]
    rng_limits: Option<vmm_reference::Limits>,
    /// A generation ID: a restored guest learns that it is a copy, and Linux makes its random numbers anew
    /// [default: on]
    #[arg(
        long,
        value_name = "on|off",
        value_parser = values::on_off(),
        hide_possible_values = true
    )]
    vmgenid: Option<bool>,
    /// A keyboard that the guest is told of, on x86_64: `ctl PATH ctrl-alt-del` types on it [default: off]
    #[arg(
        long,
        value_name = "on|off",
        value_parser = values::on_off(),
        hide_possible_values = true
    )]
    keyboard: Option<bool>,
    #[arg(
        long,
        value_name = "auto|on|off",
        help = help::lean(),
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
    #[arg(long, value_name = "TRANSPORT", help = help::transport(), value_parser = values::transport())]
    transport: Option<Transport>,
    /// Names virtio devices on the kernel's command line also when that leaves ACPI on: x86_64, --transport=mmio
    /// [default: off]
    #[cfg(feature = "virtio")]
    #[arg(
        long,
        value_name = "on|off",
        value_parser = values::on_off(),
        hide_possible_values = true
    )]
    announce_virtio: Option<bool>,
    /// Takes commands on this Unix socket, which is made for this user only: `vmm-reference ctl PATH status`
    #[cfg(feature = "control")]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    #[command(flatten)]
    sandbox: SandboxArgs,
    /// Writes where the time of the start went, when the VM ends: a page with bars (.html) or the
    /// numbers (.json)
    #[arg(long, value_name = "FILE")]
    pub(super) boot_timeline: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Command {
    /// Whether what it prints is JSON.
    pub(super) fn json(&self) -> bool {
        match self {
            Self::Plan { what, .. } => what.json,
            Self::Inspect(what) => what.json,
            Self::Doctor(what) => what.json,
            #[cfg(feature = "snapshot")]
            Self::Restore(_) | Self::Snapshot(_) => false,
            #[cfg(feature = "control")]
            Self::Ctl(what) => what.json,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct PlanOptions {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Plan for a typical host of this architecture instead of this host
    #[arg(long, value_parser = PossibleValuesParser::new(ARCHITECTURES.iter().copied()))]
    pub(super) arch: Option<String>,
    /// Plan for the host with these facts (JSON, as --dump-facts writes them); needs --arch
    #[arg(long, value_name = "FILE")]
    pub(super) facts: Option<PathBuf>,
    /// Write the facts of this host
    #[arg(long, value_name = "FILE", conflicts_with = "arch")]
    pub(super) dump_facts: Option<PathBuf>,
    /// Write the device tree the guest gets, its random seeds left zero
    #[arg(long, value_name = "FILE")]
    pub(super) dump_dtb: Option<PathBuf>,
}

impl PlanOptions {
    /// The files that are written, and the one that a VM would write.
    pub(super) fn outputs<'a>(&'a self, boot_timeline: Option<&'a Path>) -> Vec<NamedFile<'a>> {
        [
            ("boot-timeline", boot_timeline),
            ("dump-facts", self.dump_facts.as_deref()),
            ("dump-dtb", self.dump_dtb.as_deref()),
        ]
        .into_iter()
        .filter_map(|(field, path)| Some((field, path?)))
        .collect()
    }
}

#[cfg(feature = "snapshot")]
#[derive(Debug, Subcommand)]
pub(super) enum SnapshotOptions {
    /// Puts the memory of a VM that was saved with --diff into one file
    Merge {
        /// The folder with the saved VM
        folder: PathBuf,
    },
}

#[cfg(feature = "snapshot")]
#[derive(Debug, Args)]
pub(super) struct RestoreOptions {
    /// The folder with the saved VM
    #[arg(value_name = "FOLDER")]
    pub(super) folder: PathBuf,
    /// The guest stands still until it is resumed
    #[arg(long)]
    pub(super) paused: bool,
    /// How the guest gets its memory: a page is read when it is touched (lazy), or all of it before the guest goes on
    /// (prefault), or a process that listens on SOCKET brings a page when it is touched (uffd=SOCKET, or uffd=fd=N with
    /// an open descriptor that is connected to it) [default: lazy]
    #[arg(long, value_name = "HOW", value_parser = values::text::<RestoredMemory>())]
    pub(super) memory: Option<RestoredMemory>,
    /// What time the guest finds: its clocks go on where they stopped, or have gone on meanwhile [default: stopped]
    #[arg(long, value_name = "TIME", value_parser = values::word::<RestoredClock>())]
    pub(super) clock: Option<RestoredClock>,
    /// Another file behind a disk, or the one that it has although it has changed: id=ID,path=FILE or
    /// id=ID,changed=ok
    #[cfg(feature = "virtio-blk")]
    #[arg(long, value_name = "id=ID,path=FILE", value_parser = values::text::<BlkReplacement>())]
    pub(super) blk: Vec<BlkReplacement>,
    /// Another tap device of a network device: id=ID,tap=NAME or id=ID,fd=N
    #[cfg(feature = "virtio-net")]
    #[arg(long, value_name = "id=ID,tap=NAME", value_parser = values::text::<NetReplacement>())]
    pub(super) net: Vec<NetReplacement>,
    /// Another socket for the vsock device
    #[cfg(feature = "virtio-vsock")]
    #[arg(long, value_name = "path=SOCKET", value_parser = values::text::<VsockReplacement>())]
    pub(super) vsock: Option<VsockReplacement>,
    #[cfg(feature = "serial")]
    #[arg(long, value_name = "TARGET", help = help::serial(), value_parser = values::text::<ConsoleTarget>())]
    pub(super) serial: Option<ConsoleTarget>,
    /// Where the virtio console goes, if the VM has one [default: null]
    #[cfg(feature = "virtio-console")]
    #[arg(long, value_name = "TARGET", value_parser = values::text::<ConsoleTarget>())]
    pub(super) console: Option<ConsoleTarget>,
    /// Takes commands on this Unix socket, which is made for this user only
    #[cfg(feature = "control")]
    #[arg(long, value_name = "PATH")]
    pub(super) control: Option<PathBuf>,
    #[command(flatten)]
    pub(super) sandbox: SandboxArgs,
}

#[derive(Debug, Args)]
pub(super) struct InspectOptions {
    /// The kernel image, or the folder with a saved VM
    #[arg(value_name = "FILE")]
    pub(super) kernel: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct DoctorOptions {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl VmArgs {
    /// A configuration as it is with these options, which stand above what it says.
    pub(super) fn over(self, mut all: Config) -> Config {
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
        all.sandbox = self.sandbox.over(all.sandbox);
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
            config.rng_limits = self.rng_limits.unwrap_or(config.rng_limits);
        }
        config.vmgenid = self.vmgenid.unwrap_or(config.vmgenid);
        config.keyboard = self.keyboard.unwrap_or(config.keyboard);
        config.lean = self.lean.unwrap_or(config.lean);
        config.on_reboot = self.on_reboot.unwrap_or(config.on_reboot);
        config.shutdown_timeout = self.shutdown_timeout.unwrap_or(config.shutdown_timeout);
        #[cfg(feature = "virtio")]
        {
            config.transport = self.transport.unwrap_or(config.transport);
            config.announce_virtio = self.announce_virtio.unwrap_or(config.announce_virtio);
        }
        all.vm = config;
        all
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(words: &str) -> Result<(Cli, Vec<String>), clap::Error> {
        let words: Vec<OsString> = words.split(' ').map(OsString::from).collect();
        Cli::read(&words)
    }

    #[test]
    fn a_value_that_is_named_like_a_command_is_a_value() {
        let (cli, given) = read("vmm --kernel plan --append=doctor --log-level off").unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.start.vm.kernel, Some("plan".into()));
        assert!(matches!(cli.start.log.log_level, LogLevel::Off));
        for name in ["kernel", "append", "log-level"] {
            assert!(given.iter().any(|other| other == name), "{given:?}");
        }
        let (cli, given) = read("vmm plan --kernel inspect").unwrap();
        assert!(matches!(cli.command, Some(Command::Plan { .. })));
        assert!(given.iter().any(|name| name == "kernel"), "{given:?}");
        // What is wrong hears of the commands too.
        let said = read("vmm plam").unwrap_err().to_string();
        assert!(said.contains("plan"), "{said}");
        let said = read("vmm --kernel x plan").unwrap_err().to_string();
        assert!(said.contains("cannot be used with"), "{said}");
    }
    #[cfg(feature = "snapshot")]
    #[test]
    fn a_restore_is_read_as_with_the_other_commands_beside_it() {
        let (cli, given) = read("vmm restore --paused folder --log-level off").unwrap();
        let Some(Command::Restore(options)) = cli.command else {
            panic!("{cli:?}");
        };
        assert!(options.paused);
        assert_eq!(options.folder, PathBuf::from("folder"));
        assert!(matches!(cli.start.log.log_level, LogLevel::Off));
        for name in ["paused", "log-level"] {
            assert!(given.iter().any(|other| other == name), "{given:?}");
        }
        for (words, expected) in [
            ("vmm restore", "vmm restore <FOLDER>"),
            ("vmm restore --help", "Goes on where a saved VM was"),
            ("vmm restore folder --pause", "--paused"),
            ("vmm restore folder --clock now", "realtime"),
            ("vmm restores folder", "restore"),
        ] {
            let said = read(words).unwrap_err().to_string();
            assert!(said.contains(expected), "{words}: {said}");
        }
    }
}
