//! What is said about a command line that cannot be used, where the parser does not know better.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use serde_json::json;
use vmm_reference::Error;

use super::arguments::Cli;
use super::config::{Config, ConsoleTarget};
use super::errors::{Failure, print_error};
use super::files::printed;
use super::status::{FAILED, USAGE, say};

/// An option or a command, what it stands for, its feature, and whether this build has that.
macro_rules! optional {
    ($($word:literal $what:literal $feature:literal),+ $(,)?) => {
        &[$(($word, $what, $feature, cfg!(feature = $feature))),+]
    };
}

/// All that a build may lack.
const OPTIONAL: &[(&str, &str, &str, bool)] = optional![
    "--serial" "serial console" "serial",
    "--blk" "disks" "virtio-blk",
    "--net" "network devices" "virtio-net",
    "--vsock" "sockets to the host" "virtio-vsock",
    "--console" "virtio console" "virtio-console",
    "--console-overflow" "virtio console" "virtio-console",
    "--balloon" "memory balloon" "virtio-balloon",
    "--rng" "random bytes for the guest" "virtio-rng",
    "--rng-limits" "random bytes for the guest" "virtio-rng",
    "--transport" "virtio devices" "virtio",
    "--announce-virtio" "virtio devices" "virtio",
    "--config" "configuration files" "config-file",
    "--dump-config" "configuration files" "config-file",
    "--control" "control socket" "control",
    "ctl" "control socket" "control",
    "restore" "saved VMs" "snapshot",
    "snapshot" "saved VMs" "snapshot",
    "generate-files" "completions and man pages" "completions",
];

/// The names of the commands.
fn commands() -> Vec<String> {
    let cli = Cli::command();
    let names = cli.get_subcommands().map(|command| command.get_name());
    names.map(str::to_owned).collect()
}

/// Options whose value may be left away, so that it has to stand after `=`.
fn needs_equals() -> Vec<String> {
    let cli = Cli::command();
    let options = cli
        .get_arguments()
        .filter(|option| option.is_require_equals_set());
    let names = options.filter_map(|option| option.get_long());
    names.map(|name| format!("--{name}")).collect()
}

/// What of a configuration file this build has not. Devices are refused by the library.
pub(super) fn check_build(config: &Config) -> Result<(), Error> {
    let target = |target: &Option<ConsoleTarget>| target.as_ref().map(ToString::to_string);
    let control = config
        .control
        .as_ref()
        .map(|path| path.display().to_string());
    for (key, value) in [
        (
            "serial",
            target(&config.serial).filter(|value| value != "null"),
        ),
        ("console", target(&config.console)),
        ("control", control),
    ] {
        let option = format!("--{key}");
        let lacking = OPTIONAL
            .iter()
            .find(|(word, _, _, built)| *word == option && !built);
        if let (Some((_, what, feature, _)), Some(value)) = (lacking, value) {
            return Err(Error::Config {
                field: key.into(),
                value,
                cause: format!("this build has no {what}"),
                cure: format!("build with the feature {feature}"),
            });
        }
    }
    Ok(())
}

/// Prints what the parser has to say, help and version included; gives the exit status.
pub(super) fn end(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    if !error.use_stderr() {
        return match printed(error.print()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                Failure::from(error).report();
                FAILED.into()
            }
        };
    }
    let explained = explain(error, arguments);
    if wants_json(arguments) {
        let text = error.render().to_string();
        let first = text.lines().next().unwrap_or_default();
        let first = first.strip_prefix("error: ").unwrap_or(first);
        let (cause, cure) =
            explained.unwrap_or_else(|| (first.to_owned(), "see --help".to_owned()));
        print_error(&json!({ "kind": "usage", "message": cause, "cure": cure }));
    } else if let Some((cause, cure)) = explained {
        say(&format!("error: {cause}"));
        say(&format!("  cure: {cure}"));
    } else {
        // Whether somebody reads it changes nothing.
        let _ = error.print();
    }
    USAGE.into()
}

/// Whether a command was asked for JSON, in words that cannot be used as a whole.
fn wants_json(arguments: &[OsString]) -> bool {
    let has = |wanted: &str| arguments.iter().skip(1).any(|word| word == wanted);
    has("--json") && commands().iter().any(|command| has(command))
}

/// Cause and cure of an error of which more is known here.
fn explain(error: &clap::Error, arguments: &[OsString]) -> Option<(String, String)> {
    let misplaced = match error.kind() {
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand => false,
        ErrorKind::ArgumentConflict => true,
        _ => return None,
    };
    let unknown = [ContextKind::InvalidArg, ContextKind::InvalidSubcommand];
    for word in unknown.into_iter().filter_map(|kind| error.get(kind)) {
        let ContextValue::String(word) = word else {
            continue;
        };
        let name = word.split('=').next().unwrap_or_default();
        let lacking = OPTIONAL
            .iter()
            .find(|(option, _, _, built)| *option == name && !built);
        if let Some((option, what, feature, _)) = lacking {
            let cause = format!("{option}: this build has no {what}");
            return Some((cause, format!("build with the feature {feature}")));
        }
    }
    let (commands, equals) = (commands(), needs_equals());
    let is_command = |word: &str| commands.iter().any(|command| command == word);
    let has_value_behind = |word: &str| equals.iter().any(|option| option == word);
    let value = arguments.windows(2).find_map(|pair| match pair {
        [option, word] => {
            let (option, word) = (option.to_str()?, word.to_str()?);
            let is_value = has_value_behind(option) && !word.starts_with('-') && !is_command(word);
            is_value.then_some((option, word))
        }
        _ => None,
    });
    if let Some((option, word)) = value {
        return Some((
            format!("{option} {word}: the value of {option} stands after an equals sign"),
            format!("write {option}={word}"),
        ));
    }
    let words = arguments.iter().skip(1).filter_map(|word| word.to_str());
    let words: Vec<_> = words.collect();
    let place = words.iter().position(|word| is_command(word));
    // What conflicts behind a command, clap says better.
    let place = place.filter(|place| misplaced && *place > 0)?;
    let command = *words.get(place)?;
    let cure = match command {
        "plan" => "write plan first and the options after it",
        _ => "leave the options away",
    };
    let cause = format!("{command}: options of a VM stand before it");
    Some((cause, cure.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// What the source of the options has for a feature only: a name, and the feature.
    fn gated() -> Vec<(String, &'static str)> {
        let text = include_str!("arguments.rs");
        let start = text.find("enum Command {").unwrap();
        let end = text.find("enum LogLevel").unwrap();
        let mut feature = None;
        let mut found = Vec::new();
        for line in text[start..end].lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("#[cfg(feature = \"") {
                feature = rest.split('"').next();
                continue;
            }
            let line = line.strip_prefix("pub(super) ").unwrap_or(line);
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let name = line.split(|c| !is_name(c)).next().unwrap();
            let behind = &line[name.len()..];
            if name.is_empty() || !behind.starts_with([':', '(']) {
                continue;
            }
            if let Some(feature) = feature.take() {
                let name = name.to_lowercase().replace('_', "-");
                let dashes = if behind.starts_with(':') { "--" } else { "" };
                found.push((format!("{dashes}{name}"), feature));
            }
        }
        found
    }

    #[test]
    fn what_builds_may_lack_is_all_on_one_list() {
        let gated = gated();
        assert!(gated.len() > 10, "{gated:?}");
        for (word, feature) in &gated {
            let found = OPTIONAL.iter().find(|(known, ..)| known == word);
            let found = found.map(|(_, _, feature, _)| *feature);
            assert_eq!(found, Some(*feature), "{word}");
        }
        let cli = Cli::command();
        let options = cli.get_arguments().filter_map(|option| option.get_long());
        let mut there: Vec<_> = options.map(|name| format!("--{name}")).collect();
        there.extend(commands());
        for (word, _, _, built) in OPTIONAL {
            // No command of clap's.
            if *word != "generate-files" {
                assert!(gated.iter().any(|(known, _)| known == word), "{word}");
                assert_eq!(there.iter().any(|known| known == word), *built, "{word}");
            }
        }
    }
}
