//! Project automation.

mod api;
mod apt;
mod build;
mod cycles;
mod demo;
mod dist;
mod fctools;
mod first;
mod fuzz;
mod lab;
mod needs;
mod python;
mod step;
mod system;
mod test;
mod unpacked;

use std::path::Path;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};

use crate::lab::{Lab, Scope};

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
        /// Everything there is: more feature sets, other architectures' unit tests, a client's own tests, the full lab
        #[arg(long)]
        full: bool,
        /// Leave out the lab (stock kernels under nested KVM)
        #[arg(long)]
        no_lab: bool,
    },
    /// Writes the listing of the library's public API, docs/public-api.txt
    Api,
    /// Prints it
    #[command(hide = true)]
    ApiText,
    /// Builds static, stripped binaries of every architecture, completions and man pages into the target
    /// folder's dist
    Dist,
    /// Boots a Debian system with disk and network on this machine's KVM and gives its console
    Demo,
    /// Runs the tests of an independent client, the crate fctools, against our `firecracker`; as root
    Fctools {
        /// Only the tests with one of these texts in their names
        filters: Vec<String>,
    },
    /// Runs a client on PyPI, firecracker-python, against our `firecracker`; as root
    Python,
    /// Runs the fuzz targets with libFuzzer
    Fuzz {
        /// One of them; all without
        target: Option<String>,
        /// How long each
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Makes the golden snapshot of an architecture anew (tests/golden), of another one than this machine's in the
    /// lab's machine; as root
    Golden {
        #[arg(value_parser = PossibleValuesParser::new(lab::ARCHITECTURES.iter().map(|arch| arch.name)))]
        architecture: String,
    },
    /// Boots stock kernels with our VMM in an emulated machine with nested KVM
    Lab {
        #[arg(value_parser = PossibleValuesParser::new(lab::all()))]
        machine: String,
        /// Every combination of kernel format, vCPUs and memory, not only a few
        #[arg(long)]
        full: bool,
        /// Only the cases with this text in their name, and those that they need
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
        /// Lists the cases and runs none
        #[arg(long)]
        list: bool,
    },
}

fn run(command: Command) -> step::Result<()> {
    build::find_target()?;
    // Every path in this crate is relative to the workspace.
    std::env::set_current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))?;
    match command {
        Command::Test { full, no_lab } => test::run(scope(full), !no_lab),
        Command::Api => match api::listing(false)? {
            None => Ok(()),
            Some(reason) => Err(reason.into()),
        },
        Command::ApiText => api::print(),
        Command::Dist => dist::run(),
        Command::Demo => demo::run(),
        Command::Fctools { filters } => {
            fctools::needs()?.provide()?;
            match fctools::run(&filters)? {
                None => Ok(()),
                Some(reason) => Err(reason.into()),
            }
        }
        Command::Python => {
            python::needs()?.provide()?;
            match python::run()? {
                None => Ok(()),
                Some(reason) => Err(reason.into()),
            }
        }
        Command::Fuzz { target, seconds } => {
            fuzz::needs().provide()?;
            fuzz::run(target.as_deref(), seconds)
        }
        Command::Golden { architecture } => lab::golden(&architecture),
        Command::Lab {
            machine,
            full,
            only,
            list,
        } => {
            let lab = Lab::new(&machine, scope(full), only.as_deref())?;
            if list {
                println!("{}", lab.names().join("\n"));
                return Ok(());
            }
            lab.needs().provide()?;
            lab.prepare()?.run()
        }
    }
}

fn scope(full: bool) -> Scope {
    if full { Scope::Full } else { Scope::Smoke }
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
