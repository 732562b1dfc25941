//! `snapshot-editor`: what can be done with the files of a saved machine. Commands, options and texts are those of
//! Firecracker's program as far as clients know them; the files are ours.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::{Map, Value};

use crate::files::{copy_data, has_holes, open_regular, too_large_is_an_error};
use crate::saved::{self, Content};
use crate::texts::StateFault;
use crate::version::VERSION;

/// Looks at, and changes, the files of saved machines
#[derive(Debug, Parser)]
#[command(name = "snapshot-editor", version = VERSION)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Changes a file of memory
    #[command(subcommand)]
    EditMemory(EditMemory),
    /// Changes what a state has: there is nothing that can be changed
    #[command(subcommand)]
    EditVmstate(EditVmstate),
    /// Shows what a state has
    #[command(subcommand)]
    InfoVmstate(InfoVmstate),
}

#[derive(Debug, Subcommand)]
enum EditVmstate {
    /// Refused: registers stay in a state
    RemoveRegs {
        /// The registers, by their numbers in KVM
        regs: Vec<String>,
        /// The file with the state
        #[arg(short, long)]
        vmstate_path: PathBuf,
        /// Where the changed state would go
        #[arg(short, long)]
        output_path: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum EditMemory {
    /// Puts what a file of a Diff snapshot has over a file of memory. Killed meanwhile it can be done again
    Rebase {
        /// The file of memory, which is changed
        #[arg(short, long)]
        memory_path: PathBuf,
        /// The file of the Diff snapshot
        #[arg(short, long)]
        diff_path: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum InfoVmstate {
    /// The version of its format
    Version {
        /// The file with the state
        #[arg(short, long)]
        vmstate_path: PathBuf,
    },
    /// The vCPUs, as JSON
    VcpuStates {
        /// The file with the state
        #[arg(short, long)]
        vmstate_path: PathBuf,
    },
    /// All of it, as JSON
    VmState {
        /// The file with the state
        #[arg(short, long)]
        vmstate_path: PathBuf,
    },
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{}: {error}", .path.display())]
    File { path: PathBuf, error: io::Error },
    #[error(
        "{} has {memory_len} bytes, and {} has {diff_len}: they are not of one machine",
        .memory.display(), .diff.display()
    )]
    Lengths {
        memory: PathBuf,
        memory_len: u64,
        diff: PathBuf,
        diff_len: u64,
    },
    #[error(
        "{} has all of memory, as it was saved by a Full snapshot, and not what changed: use it as it is", .0.display()
    )]
    Full(PathBuf),
    #[error(
        "{} has no holes, which stand for what did not change: it was copied in a way that makes zeros of them (copy it \
         again, with its holes), or all of memory has changed (use it as it is, instead of the file of memory)",
        .0.display()
    )]
    NoHoles(PathBuf),
    #[error(
        "{} had {written} bytes of data when it was written, and has {found}: it was copied in a way that makes zeros of its \
         holes, which stand for what did not change, or holes of its zeros, which are changes; or somebody has written to it. \
         Copy the one that was written again, as it is (cp -a, tar -S), and rebase that", .path.display()
    )]
    OtherData {
        path: PathBuf,
        written: u64,
        found: u64,
    },
    #[error("{}: {fault}", .path.display())]
    State { path: PathBuf, fault: StateFault },
    #[error("{}: {cause}", .path.display())]
    Content { path: PathBuf, cause: String },
    #[error(
        "{}: no registers are taken out of a state ({}), and {} is not written: a guest that has used them would go on \
         without; cure: load it on a host that has them (a load names those that its host has not), or start the machine \
         with a cpu-config that hides what other hosts lack",
        .state.display(), .registers.join(" "), .output.display()
    )]
    Registers {
        state: PathBuf,
        registers: Vec<String>,
        output: PathBuf,
    },
    #[error("cannot print: {0}")]
    Print(io::Error),
}

/// What of a state is what KVM knows.
const KVM: [&str; 4] = ["promise", "vcpus", "chip", "clock"];

/// Does what the arguments of the process say, and gives its exit status.
#[must_use]
pub fn main() -> ExitCode {
    too_large_is_an_error();
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Who has closed stderr does not want to know.
            let _ = writeln!(io::stderr(), "Error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    let text = match command {
        Command::EditMemory(EditMemory::Rebase {
            memory_path,
            diff_path,
        }) => return rebase(&memory_path, &diff_path),
        Command::EditVmstate(EditVmstate::RemoveRegs {
            regs,
            vmstate_path,
            output_path,
        }) => {
            read(&vmstate_path)?;
            return Err(Failure::Registers {
                state: vmstate_path,
                registers: regs,
                output: output_path,
            });
        }
        Command::InfoVmstate(InfoVmstate::Version { vmstate_path }) => {
            read(&vmstate_path)?;
            format!("{}\n", saved::version())
        }
        Command::InfoVmstate(InfoVmstate::VcpuStates { vmstate_path }) => {
            let mut sections = sections(&vmstate_path)?;
            let vcpus = match sections.remove("vcpus") {
                Some(Value::Array(vcpus)) => vcpus,
                _ => Vec::new(),
            };
            let vcpus = vcpus.iter().enumerate();
            vcpus
                .map(|(number, vcpu)| format!("vcpu {number}:\n{vcpu:#}\n"))
                .collect()
        }
        Command::InfoVmstate(InfoVmstate::VmState { vmstate_path }) => {
            let (kvm, mut rest): (Map<_, _>, Map<_, _>) = sections(&vmstate_path)?
                .into_iter()
                .partition(|(name, _)| KVM.contains(&&**name));
            rest.insert("kvm".to_owned(), kvm.into());
            format!("{:#}\n", Value::from(rest))
        }
    };
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(Failure::Print)
}

fn rebase(memory: &Path, diff: &Path) -> Result<(), Failure> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| Failure::File { path, error }
    };
    let to = open_regular(memory, true).map_err(failed(memory))?;
    let from = open_regular(diff, false).map_err(failed(diff))?;
    let to_len = to.metadata().map_err(failed(memory))?.len();
    let from_len = from.metadata().map_err(failed(diff))?.len();
    if to_len != from_len {
        return Err(Failure::Lengths {
            memory: memory.to_owned(),
            memory_len: to_len,
            diff: diff.to_owned(),
            diff_len: from_len,
        });
    }
    match saved::label(&from) {
        Some((_, Content::Full)) => return Err(Failure::Full(diff.to_owned())),
        // Nobody has written to it since: it has what was written as changed.
        Some((_, Content::Diff)) => {}
        None => {
            if let Some((written, found)) = saved::other_data(&from) {
                return Err(Failure::OtherData {
                    path: diff.to_owned(),
                    written,
                    found,
                });
            }
            if !has_holes(&from).map_err(failed(diff))? {
                return Err(Failure::NoHoles(diff.to_owned()));
            }
        }
    }
    // As it was written, even if a rebase that was killed has added to it.
    let before = saved::content(&to);
    let copied = copy_data(&from, &to, from_len).map_err(failed(memory))?;
    to.sync_data().map_err(failed(memory))?;
    let now = before.map(|(content, data)| (content, data.saturating_add(copied)));
    saved::take_mark(&to, &from, now);
    to.sync_all().map_err(failed(memory))
}

fn read(path: &Path) -> Result<vmm_reference::Snapshot, Failure> {
    saved::read(path).map_err(|fault| Failure::State {
        path: path.to_owned(),
        fault,
    })
}

fn sections(path: &Path) -> Result<Map<String, Value>, Failure> {
    let wrong = |cause: String| Failure::Content {
        path: path.to_owned(),
        cause,
    };
    let sections = read(path)?.sections();
    let sections = sections.map_err(|error| wrong(error.chain()))?;
    let value = |(name, bytes): (&str, Vec<u8>)| {
        let value = serde_json::from_slice(&bytes);
        let value = value.map_err(|error| wrong(format!("the section {name}: {error}")))?;
        Ok((name.to_owned(), value))
    };
    sections.into_iter().map(value).collect()
}
