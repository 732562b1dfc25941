//! What `ctl PATH …` may ask for, in words.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
#[cfg(feature = "snapshot")]
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{Args, Subcommand, ValueEnum};
use rustix::fs::{OFlags, fcntl_getfl};
#[cfg(all(feature = "snapshot", feature = "virtio-net"))]
use vmm_reference::NetReplacement;
#[cfg(all(feature = "snapshot", feature = "virtio-vsock"))]
use vmm_reference::VsockReplacement;
#[cfg(feature = "snapshot")]
use vmm_reference::{BlkCopy, BlkReplacement, ForkWish};
use vmm_reference::{
    Change, Command, Direction, Error, Hinting, Limits, LimitsChange, Link, NewFile, OptionError,
    Query, TerminalSize,
};

use super::values;

#[derive(Debug, Args)]
pub(super) struct CtlOptions {
    /// The VM's control socket
    #[arg(value_name = "PATH")]
    pub(super) socket: PathBuf,
    #[command(subcommand)]
    pub(super) what: What,
    /// Prints the VM's answer as it is, and errors likewise: one JSON object a line
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Debug, Clone, Subcommand)]
pub(super) enum What {
    /// The guest stands still until it is resumed
    Pause,
    /// A paused guest goes on
    Resume,
    /// Says what the VM and its devices do
    Status,
    /// The VM ends now
    Stop,
    /// Asks the guest to power itself off
    Shutdown {
        /// How long it may take, before the VM ends [default: what the VM was started with]
        #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = values::seconds())]
        timeout: Option<u32>,
    },
    /// Types Ctrl-Alt-Del on the guest's keyboard, or presses its power button if it listens to none
    CtrlAltDel,
    /// The guest starts again, with fresh memory and the same devices
    Reset,
    /// Says what the VM has done so far
    Metrics {
        /// In the text format of Prometheus
        #[arg(long, conflicts_with = "json")]
        prometheus: bool,
    },
    /// Says what every vCPU of a paused VM is at
    Registers,
    /// Saves the VM, for `restore`; the guest stands still meanwhile
    #[cfg(feature = "snapshot")]
    Snapshot {
        /// Where its files go; those of a VM that was saved there before are replaced
        folder: PathBuf,
        /// Adds to the saved VM there what changed since, if it is this VM's last one with --diff; else saves all of it,
        /// and remembers that
        #[arg(long)]
        diff: bool,
        /// Copies the file of a disk meanwhile, to a new file which the saved VM has in its place
        #[arg(long, value_name = "id=ID,copy=FILE", value_parser = values::text::<BlkCopy>())]
        blk: Vec<BlkCopy>,
    },
    /// The VM becomes two: a fork of it goes on as a process of its own, from the same memory
    #[cfg(feature = "snapshot")]
    Fork(ForkOptions),
    /// Prints what happens to the VM, until it ends
    Events,
    /// Changes a device while the VM runs or is paused, or has it tell something
    Device {
        /// The device's id, as `status` and `plan` tell it: blk0, net0, …
        id: String,
        #[command(subcommand)]
        part: Part,
    },
}

/// What a fork has of its own.
#[cfg(feature = "snapshot")]
#[derive(Debug, Clone, Args)]
pub(super) struct ForkOptions {
    /// The fork takes commands on this Unix socket, which is made for this user only
    #[arg(long, value_name = "PATH")]
    pub(super) control: PathBuf,
    /// Another file behind a disk, or a new file which becomes a copy of it while the guest stands still: id=ID,path=FILE
    /// or id=ID,copy=FILE. Every disk that the guest may write to needs one; the others are shared, of which id=ID,ro makes
    /// sure
    #[cfg(feature = "virtio-blk")]
    #[arg(long, value_name = "id=ID,copy=FILE", value_parser = values::text::<ForkBlk>())]
    pub(super) blk: Vec<ForkBlk>,
    /// Another tap device of a network device: id=ID,tap=NAME, of one with several pairs of queues id=ID,tap=NAME,queues=N,
    /// or id=ID,fd=N
    #[cfg(feature = "virtio-net")]
    #[arg(long, value_name = "id=ID,tap=NAME", value_parser = values::text::<ForkNet>())]
    pub(super) net: Vec<ForkNet>,
    /// Another socket for the vsock device
    #[cfg(feature = "virtio-vsock")]
    #[arg(long, value_name = "path=SOCKET", value_parser = values::text::<VsockReplacement>())]
    pub(super) vsock: Option<VsockReplacement>,
    /// Where the fork's serial console goes: null, or file=PATH, a new or empty file [default: null]
    #[cfg(feature = "serial")]
    #[arg(long, value_name = "TARGET", value_parser = values::text::<ForkConsole>())]
    pub(super) serial: Option<ForkConsole>,
    /// Where its virtio console goes, if the VM has one [default: null]
    #[cfg(feature = "virtio-console")]
    #[arg(long, value_name = "TARGET", value_parser = values::text::<ForkConsole>())]
    pub(super) console: Option<ForkConsole>,
    /// The fork's guest stands still until it is resumed
    #[arg(long)]
    pub(super) paused: bool,
}

/// The file of a fork's disk.
#[cfg(feature = "snapshot")]
#[derive(Debug, Clone)]
pub(super) enum ForkBlk {
    /// One that is there.
    File { id: String, path: PathBuf },
    /// A new one.
    Copy(BlkCopy),
    /// That of the VM, which is only read.
    Shared(String),
}

/// The tap device of a fork.
#[cfg(all(feature = "snapshot", feature = "virtio-net"))]
#[derive(Debug, Clone)]
pub(super) struct ForkNet {
    pub(super) new: NetReplacement,
    /// Pairs of queues.
    pub(super) queues: u16,
}

#[cfg(all(feature = "snapshot", feature = "virtio-net"))]
impl FromStr for ForkNet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut queues, mut rest) = (None, Vec::new());
        for word in text.split(',') {
            match word.strip_prefix("queues=") {
                Some(number) if queues.is_none() => queues = Some(number),
                _ => rest.push(word),
            }
        }
        let new: NetReplacement = rest.join(",").parse().map_err(|error| format!("{error}"))?;
        let queues = match queues.map(|queues| (queues, queues.parse())) {
            None => 1,
            Some((_, Ok(number @ 1..=MOST_QUEUES))) if new.fd.is_none() || number == 1 => number,
            Some((text, Ok(1..=MOST_QUEUES))) => {
                return Err(format!(
                    "queues={text}: a descriptor is one pair of queues; name the tap device instead"
                ));
            }
            Some((text, _)) => return Err(format!("queues={text:?}: it is 1 to {MOST_QUEUES}")),
        };
        Ok(Self { new, queues })
    }
}

/// The most pairs of queues of a network device.
#[cfg(all(feature = "snapshot", feature = "virtio-net"))]
const MOST_QUEUES: u16 = 8;

#[cfg(feature = "snapshot")]
impl FromStr for ForkBlk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(copy) = text.parse() {
            return Ok(Self::Copy(copy));
        }
        match text.parse::<BlkReplacement>() {
            Ok(BlkReplacement {
                id,
                path: Some(path),
                changed: false,
                ..
            }) => Ok(Self::File { id, path }),
            _ => match text
                .strip_prefix("id=")
                .and_then(|text| text.strip_suffix(",ro"))
            {
                Some(id) if !id.is_empty() && !id.contains([',', '"']) => {
                    Ok(Self::Shared(id.to_owned()))
                }
                _ => Err("it is id=ID,path=FILE, id=ID,copy=FILE or id=ID,ro".to_owned()),
            },
        }
    }
}

/// Where a console of a fork goes.
#[cfg(feature = "snapshot")]
#[derive(Debug, Clone)]
#[cfg_attr(
    not(any(feature = "serial", feature = "virtio-console")),
    allow(dead_code)
)]
pub(super) enum ForkConsole {
    Null,
    File(PathBuf),
}

#[cfg(feature = "snapshot")]
impl FromStr for ForkConsole {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("file=") {
            Some(path) if !path.is_empty() => Ok(Self::File(path.into())),
            None if text == "null" => Ok(Self::Null),
            _ => Err("it is null or file=PATH"),
        }
    }
}

/// What can be changed of a device, or told by it.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum Part {
    /// How much may pass a disk or a network device, or how many random bytes the guest gets
    Limits {
        /// bw=BYTES, bw-burst=BYTES, bw-refill=MS, bw-once=BYTES, iops=N, iops-burst=N, iops-refill=MS, iops-once=N, the
        /// rates per second; or none. What is not named is not limited any more
        #[arg(required = true, value_name = "LIMIT", value_parser = values::limit())]
        words: Vec<String>,
    },
    /// The same, but what is not named stays as it is
    AdjustLimits {
        /// Of a network device, frames to the guest or from it only [default: both]
        #[arg(long, value_enum)]
        direction: Option<Way>,
        /// As for limits; bw=0 and iops=0 take a limit away
        #[arg(required = true, value_name = "LIMIT")]
        words: Vec<String>,
    },
    /// Another file behind a disk, which this command opens: the VM itself opens nothing
    File {
        /// A raw image or a block device
        path: PathBuf,
    },
    /// Plugs the cable of a network device in, or pulls it
    Link {
        #[arg(value_enum)]
        state: Plug,
    },
    /// What a balloon leaves the guest with
    Target {
        /// MiB, or a number with K, M, G or T
        #[arg(allow_negative_numbers = true, value_parser = values::target())]
        size: u64,
    },
    /// The size of a console's terminal
    Size {
        /// COLUMNSxROWS, like 80x25
        #[arg(value_parser = values::terminal_size())]
        size: TerminalSize,
    },
    /// Says what a balloon holds, and how its guest is off for memory
    Statistics,
    /// Has a balloon's guest name the pages that it has free, which go back to the host
    Hinting {
        #[arg(value_enum)]
        what: Hints,
    },
    /// How often a balloon's guest is asked for its statistics; 0: only when a command asks for them
    StatsInterval {
        /// 0 to 86400
        #[arg(allow_negative_numbers = true, value_parser = values::stats_interval())]
        seconds: u32,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Hints {
    /// The guest names them, and may use them again once it has named all
    Start,
    /// Likewise, but it leaves them alone until it is told to stop
    Hold,
    /// The guest names no more, and may use them again
    Stop,
    /// Says how far it is
    Status,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Way {
    /// To the guest
    Rx,
    /// From the guest
    Tx,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Plug {
    /// Frames pass
    Up,
    /// Frames are dropped
    Down,
}

impl What {
    pub(super) fn command(&self) -> Result<Option<Command>, clap::Error> {
        Ok(Some(match self {
            Self::Pause => Command::Pause {},
            Self::Resume => Command::Resume {},
            Self::Status => Command::Status {},
            Self::Stop => Command::Stop {},
            Self::Shutdown { timeout } => Command::Shutdown {
                timeout_s: *timeout,
            },
            Self::CtrlAltDel => Command::CtrlAltDel {},
            Self::Reset => Command::Reset {},
            Self::Metrics { .. } => Command::Metrics {},
            Self::Registers => Command::Registers {},
            // Its file has no name yet.
            #[cfg(feature = "snapshot")]
            Self::Snapshot { .. } => Command::Snapshot {
                memory: String::new(),
                since: None,
                copies: Vec::new(),
                form: vmm_reference::SavedForm::Layer,
                note: None,
            },
            // Its files are not open yet.
            #[cfg(feature = "snapshot")]
            Self::Fork(_) => Command::Fork(ForkWish::default()),
            Self::Device { id, part } => part.command(id.clone())?,
            Self::Events => return Ok(None),
        }))
    }
}

fn invalid_limits(text: &str, error: &OptionError) -> clap::Error {
    let message = format!("invalid limits '{text}': {error}\n");
    clap::Error::raw(ErrorKind::ValueValidation, message)
}

impl Part {
    /// What a device is asked for.
    ///
    /// # Errors
    /// When limits do not fit together.
    pub(super) fn command(&self, device: String) -> Result<Command, clap::Error> {
        let change = match self {
            Self::Limits { words } => {
                let text = words.join(" ");
                let limits = text.parse::<Limits>();
                Change::Limits(limits.map_err(|error| invalid_limits(&text, &error))?)
            }
            Self::AdjustLimits { direction, words } => {
                let text = words.join(" ");
                let direction = direction.map(|way| match way {
                    Way::Rx => Direction::Rx,
                    Way::Tx => Direction::Tx,
                });
                let change = LimitsChange::parse(direction, &text);
                Change::AdjustLimits(change.map_err(|error| invalid_limits(&text, &error))?)
            }
            Self::File { path } => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                let name = path.display().to_string();
                Change::File(NewFile::new(name))
            }
            Self::Link { state: Plug::Up } => Change::Link(Link::Up),
            Self::Link { state: Plug::Down } => Change::Link(Link::Down),
            Self::Target { size } => Change::Target(*size),
            Self::Size { size } => Change::Size(*size),
            Self::Hinting { what: Hints::Start } => Change::Hinting(Hinting::Start),
            Self::Hinting { what: Hints::Hold } => Change::Hinting(Hinting::Hold),
            Self::Hinting { what: Hints::Stop } => Change::Hinting(Hinting::Stop),
            Self::StatsInterval { seconds } => Change::StatsInterval(*seconds),
            Self::Hinting {
                what: Hints::Status,
            } => {
                let query = Query::Hinting;
                return Ok(Command::Query { device, query });
            }
            Self::Statistics => {
                let query = Query::Statistics;
                return Ok(Command::Query { device, query });
            }
        };
        Ok(Command::Device { device, change })
    }

    /// Opens what goes beside the command.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub(super) fn open(&self) -> Result<Vec<File>, Error> {
        let Self::File { path } = self else {
            return Ok(Vec::new());
        };
        let file = open_disk("file", path)?;
        let again = open_again(&file);
        Ok([file].into_iter().chain(again).collect())
    }
}

/// Opens the file of a disk, for writing if that is possible.
///
/// # Errors
/// When it cannot be opened.
pub(super) fn open_disk(field: &'static str, path: &Path) -> Result<File, Error> {
    let mut options = File::options();
    // A FIFO must not block; a regular file does not care.
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let opened = match options.clone().write(true).open(path) {
        // A disk that is only read needs no more.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            options.open(path)
        }
        opened => opened,
    };
    opened.map_err(|error| Error::Config {
        field: field.into(),
        value: path.display().to_string(),
        cause: error.to_string(),
        cure: "name a raw image or a block device that this user may open".to_owned(),
    })
}

/// The same file once more, as it is open: a VM that cannot open it itself takes one of the two for direct I/O. `None`
/// where the host does not let it be.
pub(super) fn open_again(file: &File) -> Option<File> {
    let flags = fcntl_getfl(file).ok()?;
    let mut options = File::options();
    options
        .read(true)
        .write(flags & OFlags::RWMODE == OFlags::RDWR)
        .custom_flags(libc::O_NONBLOCK);
    options
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .ok()
}
