//! `ctl PATH device ID …`: what of a device is changed, in words.

use clap::error::ErrorKind;
use clap::{Subcommand, ValueEnum};
use vmm_reference::{Change, Limits, Link, TerminalSize};

use super::values;

/// What can be changed of a device.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum Part {
    /// How much may pass a disk or a network device
    Limits {
        /// bw=BYTES, bw-burst=BYTES, iops=N, iops-burst=N, the rates per second; or none. What is not named is not
        /// limited any more
        #[arg(required = true, value_name = "LIMIT", value_parser = values::limit())]
        words: Vec<String>,
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
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Plug {
    /// Frames pass
    Up,
    /// Frames are dropped
    Down,
}

impl Part {
    /// # Errors
    /// When limits do not fit together.
    pub(super) fn change(&self) -> Result<Change, clap::Error> {
        Ok(match self {
            Self::Limits { words } => {
                let text = words.join(" ");
                let limits = text.parse::<Limits>();
                Change::Limits(limits.map_err(|error| {
                    let message = format!("invalid limits '{text}': {error}\n");
                    clap::Error::raw(ErrorKind::ValueValidation, message)
                })?)
            }
            Self::Link { state: Plug::Up } => Change::Link(Link::Up),
            Self::Link { state: Plug::Down } => Change::Link(Link::Down),
            Self::Target { size } => Change::Target(*size),
            Self::Size { size } => Change::Size(*size),
        })
    }
}
