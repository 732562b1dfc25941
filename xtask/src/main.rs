//! Project automation.

mod apt;
mod demo;
mod dist;
mod fuzz;
mod lab;
mod step;
mod system;
mod test;

use std::path::Path;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};

use crate::lab::ARCHITECTURES;

#[derive(Debug, Parser)]
#[command(about = "Project automation")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sets up what the tests need, where it may, and runs all of them
    Test {
        /// Leave out the lab (stock kernels under nested KVM)
        #[arg(long)]
        no_lab: bool,
    },
    /// Builds static, stripped binaries of every architecture, completions and man pages into
    /// target/dist
    Dist,
    /// Boots a Debian system with disk and network on this machine's KVM and gives its console
    Demo,
    /// Runs the fuzz targets with libFuzzer
    Fuzz {
        /// One of them; all without
        target: Option<String>,
        /// How long each
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Boots stock kernels with our VMM in an emulated machine with nested KVM
    Lab {
        #[arg(value_parser = PossibleValuesParser::new(ARCHITECTURES.iter().map(|arch| arch.name)))]
        arch: String,
        /// Every combination of kernel format, vCPUs and memory, not only a few
        #[arg(long)]
        full: bool,
        /// Only the cases with this text in their name; some need others before them
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
    },
}

fn run(command: Command) -> step::Result<()> {
    // Every path in this crate is relative to the workspace.
    std::env::set_current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))?;
    test::set_up()?;
    match command {
        Command::Test { no_lab } => test::run(!no_lab),
        Command::Dist => dist::run(),
        Command::Demo => demo::run(),
        Command::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
        Command::Lab { arch, full, only } => ARCHITECTURES
            .iter()
            .filter(|row| row.name == arch)
            .try_for_each(|row| lab::run(row, full, only.as_deref())),
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
