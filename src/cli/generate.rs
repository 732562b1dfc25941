//! Completions for shells and man pages, from the same description as the options themselves. A
//! release hands out the files; the program that runs VMs has none of this.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::{Shell, generate_to};

use super::{Cli, FAILED, say};

/// No option of the command line, so that it is in none of the files.
const WORD: &str = "generate-files";

/// Writes the files when the first argument asks for that and the second names a folder.
pub(super) fn asked() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    arguments.next().filter(|word| word == WORD)?;
    let folder = arguments.next().map(PathBuf::from).unwrap_or_default();
    Some(match write(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {}: {error}", folder.display()));
            say("  cure: name a folder that can be written to");
            FAILED.into()
        }
    })
}

fn write(folder: &Path) -> io::Result<()> {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, &name, folder)?;
    }
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), folder)
}
