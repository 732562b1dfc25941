//! `ctl PATH device ID …`: what of a device is changed or told, in words.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Subcommand, ValueEnum};
use vmm_reference::{Change, Command, Error, Hinting, Limits, Link, NewFile, Query, TerminalSize};

use super::values;

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
