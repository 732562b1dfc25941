//! Completions for shells and man pages, from the same description as the options themselves. A
//! release hands out the files; the program that runs VMs has none of this.

mod bash;
mod parts;
mod zsh;

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::{Generator, Shell};

use super::arguments::Cli;
use super::status::{FAILED, USAGE, say};

/// No option of the command line, so that it is in none of the files.
const WORD: &str = "generate-files";

/// Writes the files when the first argument asks for that and the second names a folder.
pub(super) fn asked() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    arguments.next().filter(|word| word == WORD)?;
    let folder = arguments.next().map(PathBuf::from);
    let folder = match (folder, arguments.next()) {
        (Some(folder), None) if is_folder_name(&folder) => folder,
        (Some(other), None) => {
            return Some(refuse(&format!("{} names no folder", other.display())));
        }
        (None, _) => return Some(refuse("it takes a folder, which is made if there is none")),
        (Some(_), Some(extra)) => {
            return Some(refuse(&format!("{} is one too many", extra.display())));
        }
    };
    Some(match write(&folder) {
        Ok(files) => {
            let mut names = files.iter().map(|file| file.display().to_string());
            match names.try_for_each(|name| super::files::print(&name)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    super::errors::Failure::from(error).report();
                    FAILED.into()
                }
            }
        }
        Err((path, error)) => {
            say(&format!("error: {}: {error}", path.display()));
            say("  cure: name a folder that can be made or written to");
            FAILED.into()
        }
    })
}

/// No option, and not nothing.
fn is_folder_name(folder: &Path) -> bool {
    let text = folder.as_os_str().as_encoded_bytes();
    !text.is_empty() && !text.starts_with(b"-")
}

fn refuse(cause: &str) -> ExitCode {
    say(&format!("error: {WORD}: {cause}"));
    say(&format!(
        "  cure: {WORD} FOLDER; `{WORD} .` for the current one"
    ));
    USAGE.into()
}

/// Gives what was written, or what cannot be and why.
fn write(folder: &Path) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let refused = |error| (folder.to_owned(), error);
    fs::create_dir_all(folder).map_err(refused)?;
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    // Of clap's own one, the part after a subcommand is never reached for a name with a hyphen, and it does
    // not complete `--option=value`.
    let bash = bash::script(&mut Cli::command()).into_bytes();
    let mut files = vec![(format!("{name}.bash"), bash)];
    let zsh = zsh::script(&mut Cli::command()).map_err(refused)?;
    files.push((Shell::Zsh.file_name(&name), zsh.into_bytes()));
    // Not into the file: what cannot be written there would be a panic.
    let mut fish = Vec::new();
    clap_complete::generate(Shell::Fish, &mut command, &name, &mut fish);
    files.push((Shell::Fish.file_name(&name), fish));
    files.extend(man_pages().map_err(refused)?);
    let write = |(file, text): (String, Vec<u8>)| {
        let path = folder.join(file);
        match fs::write(&path, text) {
            Ok(()) => Ok(path),
            Err(error) => Err((path, error)),
        }
    };
    files.into_iter().map(write).collect()
}

/// A page for the program and one for each subcommand, with their file names.
fn man_pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let name = command.get_name().to_owned();
    let mut others: Vec<_> = command
        .get_subcommands()
        .map(|one| format!("{name}-{}", one.get_name()))
        .collect();
    others.insert(0, name.clone());
    let subcommands: Vec<_> = command.get_subcommands().cloned().collect();
    let subcommands = subcommands.into_iter().map(|one| {
        // The names of the files, and of the pages in them.
        let full = format!("{name}-{}", one.get_name());
        (full, one)
    });
    let pages = std::iter::once((name.clone(), command)).chain(subcommands);
    pages
        .map(|(title, command)| {
            let file = format!("{title}.1");
            let page = man_page(&title, command, &others)?;
            Ok((file, page))
        })
        .collect()
}

fn man_page(title: &str, command: clap::Command, others: &[String]) -> io::Result<Vec<u8>> {
    let version = env!("CARGO_PKG_VERSION");
    let is_main = command.get_after_help().is_some();
    let described = command.get_display_name().unwrap_or(title).to_owned();
    let subcommands: Vec<_> = command.get_subcommands().cloned().collect();
    let man = clap_mangen::Man::new(command.display_name(described))
        .title(title)
        .source(format!("vmm-reference {version}"));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if is_main {
        man.render_subcommands_section(&mut page)?;
        section(&mut page, super::help::AFTER_HELP);
    } else if subcommands.iter().any(|one| one.get_name() != "help") {
        page.extend(b".SH COMMANDS\n");
        for one in subcommands {
            describe(&mut page, "", &one);
        }
    }
    let references: Vec<_> = others
        .iter()
        .filter(|other| *other != title)
        .map(|other| format!("\\fB{}\\fR(1)", other.replace('-', "\\-")))
        .collect();
    page.extend(format!(".SH \"SEE ALSO\"\n{}\n", references.join(", ")).bytes());
    Ok(page)
}

/// What a subcommand does, with its arguments and its own options; those of its subcommands instead, if it has some.
fn describe(page: &mut Vec<u8>, before: &str, command: &clap::Command) {
    let name = format!("{before}{}", command.get_name());
    if command.get_name() == "help" {
        return;
    }
    let positionals: Vec<_> = command.get_positionals().collect();
    let mut usage = name.clone();
    for argument in &positionals {
        let many = argument
            .get_num_args()
            .is_some_and(|count| count.max_values() > 1);
        let names = argument.get_value_names().unwrap_or_default();
        let value = names.first().map_or("", |name| name.as_str());
        usage += &format!(" {value}{}", if many { " ..." } else { "" });
    }
    let about = command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    if command.has_subcommands() {
        page.extend(format!(".PP\n{}:\n", roff(&about)).bytes());
        for one in command.get_subcommands() {
            describe(page, &format!("{usage} "), one);
        }
        return;
    }
    page.extend(format!(".TP\n\\fB{}\\fR\n{}\n", roff(&usage), roff(&about)).bytes());
    // What every command has stands among the options of the page.
    let own = command
        .get_arguments()
        .filter(|argument| !argument.is_global_set() && argument.get_long() != Some("help"));
    for argument in own {
        let words: Vec<_> = argument
            .get_possible_values()
            .iter()
            .map(|value| value.get_name().to_owned())
            .collect();
        let help = argument
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let value = argument.get_value_names().unwrap_or_default().first();
        let value = value.map_or("", |name| name.as_str());
        let shown = match argument.get_long() {
            Some(long) if argument.get_action().takes_values() => format!("--{long} {value}"),
            Some(long) => format!("--{long}"),
            None => value.to_owned(),
        };
        let text = if words.is_empty() {
            help
        } else {
            words.join(" or ")
        };
        page.extend(format!(".br\n\\fB{}\\fR: {}\n", roff(&shown), roff(&text)).bytes());
    }
}

/// The paragraphs of a text, each under its first line.
fn section(page: &mut Vec<u8>, text: &str) {
    for paragraph in text.split("\n\n") {
        let mut lines = paragraph.lines();
        let heading = lines.next().unwrap_or_default();
        let (heading, rest) = heading.split_once(':').unwrap_or((heading, ""));
        let lead = heading
            .split_once(',')
            .map_or(String::new(), |(_, rest)| rest.trim().to_owned());
        let heading = heading.split(',').next().unwrap_or_default();
        page.extend(format!(".SH \"{}\"\n", heading.to_uppercase()).bytes());
        for text in [lead.as_str(), rest.trim()] {
            if !text.is_empty() {
                page.extend(format!("{}:\n", roff(text)).bytes());
            }
        }
        page.extend(b".nf\n");
        for line in lines {
            page.extend(format!("{}\n", roff(line)).bytes());
        }
        page.extend(b".fi\n");
    }
}

/// A text as roff takes it.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    // A line that begins so would be a request.
    if text.starts_with(['.', '\'']) {
        format!("\\&{text}")
    } else {
        text
    }
}
