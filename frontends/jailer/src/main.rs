//! `jailer`: puts a VMM into a folder of its own, as another user, and whatever namespaces, cgroups and limits are
//! asked for; as an ordinary user, with what that may do. The command line, the layout of folders and the texts that clients look for are those of Firecracker's
//! program of this name (docs/firecracker.md).

mod arguments;
mod cgroup;
mod error;
mod root;
mod rootless;
mod start;
mod sys;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use rustix::time::ClockId;

use crate::arguments::{Arguments, Invocation};
use crate::error::{Result, on, step};
use crate::root::{Program, Root};
use crate::rootless::Rights;
use crate::start::Start;

/// The version of Firecracker whose interface this is.
const VERSION: &str = "1.16.0";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where nobody listens nothing can be said.
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    sys::close_inherited().map_err(step("close descriptors (Linux 5.9 is needed)"))?;
    let began = start::now(ClockId::Monotonic);
    let given: Vec<_> = std::env::args_os().skip(1).collect();
    let version = format!(
        "Jailer v{VERSION}\nvmm-reference v{}\n",
        env!("CARGO_PKG_VERSION")
    );
    match arguments::parse(&given)? {
        Invocation::Version => print(&version),
        Invocation::Help => print(&format!("{version}\n{}", arguments::help())),
        Invocation::Run(arguments) => jail(&arguments, began),
    }
}

fn print(text: &str) -> Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(step("write to standard output"))
}

/// What can be checked without changing anything comes first.
fn jail(arguments: &Arguments, began: u64) -> Result<()> {
    let program = Program::open(&arguments.exec_file)?;
    let base = root::base(&arguments.base)?;
    let rights = Rights::of(arguments.uid, arguments.gid)?;
    let cgroups = cgroup::Plan::new(&arguments.cgroups, Path::new(&program.name), &arguments.id)?;
    if let Some(path) = &arguments.netns {
        rights.join_network(path)?;
    }
    rights.take()?;
    rights.namespaces(root::own_mounts())?;
    let user = (arguments.uid, arguments.gid);
    let root = Root::make(&base, &program, &arguments.id, user, rights)?;
    root.copy(&program)?;
    rights.cgroups(cgroups.carry_out())?;
    // Before the root changes: there is none in the new one.
    let null = arguments
        .daemonize
        .then(|| File::options().read(true).write(true).open("/dev/null"));
    let null = null.transpose().map_err(on("open", "/dev/null"))?;
    root.furnish()?;
    root.enter()?;
    let start = Start {
        arguments,
        name: &program.name,
        null,
        began,
    };
    start.run()
}
