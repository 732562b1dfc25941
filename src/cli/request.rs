//! What `ctl PATH …` may ask for, in words.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Subcommand, ValueEnum};
use vmm_reference::{Change, Command, Error, Hinting, Limits, Link, NewFile, Query, TerminalSize};

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
    },
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

/// What can be changed of a device, or told by it.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum Part {
    /// How much may pass a disk or a network device
    Limits {
        /// bw=BYTES, bw-burst=BYTES, iops=N, iops-burst=N, the rates per second; or none. What is not named is not
        /// limited any more
        #[arg(required = true, value_name = "LIMIT", value_parser = values::limit())]
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
            Self::Reset => Command::Reset {},
            Self::Metrics { .. } => Command::Metrics {},
            Self::Registers => Command::Registers {},
            // Its file has no name yet.
            #[cfg(feature = "snapshot")]
            Self::Snapshot { .. } => Command::Snapshot {
                memory: String::new(),
            },
            Self::Device { id, part } => part.command(id.clone())?,
            Self::Events => return Ok(None),
        }))
    }
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
                Change::Limits(limits.map_err(|error| {
                    let message = format!("invalid limits '{text}': {error}\n");
                    clap::Error::raw(ErrorKind::ValueValidation, message)
                })?)
            }
            Self::File { path } => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                let name = path.display().to_string();
                Change::File(NewFile { name })
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
    pub(super) fn open(&self) -> Result<Option<File>, Error> {
        let Self::File { path } = self else {
            return Ok(None);
        };
        let writing = File::options().read(true).write(true).open(path);
        let opened = match writing {
            // A disk that is only read needs no more.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                File::open(path)
            }
            opened => opened,
        };
        opened.map(Some).map_err(|error| Error::Config {
            field: "file".into(),
            value: path.display().to_string(),
            cause: error.to_string(),
            cure: "name a raw image or a block device that this user may open".to_owned(),
        })
    }
}
