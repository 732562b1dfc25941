//! Completions for bash.
//!
//! A script that knows for each command and option what kind of value it takes, and a function that is the same
//! for every program. bash breaks words at `=` and `:`, so the function looks at the line itself.

use std::fmt::Write as _;

use clap::{Arg, Command, ValueHint};

use super::parts::{LIMIT, PARTS, TARGET_WORDS, TARGETS, Value, value_of};

const FUNCTIONS: &str = include_str!("completion.bash");

/// The script.
pub(super) fn script(command: &mut Command) -> String {
    command.build();
    let mut tables = Tables::default();
    tables.add("", command);
    let mut parts = String::new();
    for (option, keys) in PARTS {
        // Writing to a String cannot fail.
        let _ = writeln!(
            parts,
            "        {option},) kind='words:{}' ;;",
            keys.join(" ")
        );
        for key in keys.iter().filter(|key| key.ends_with('=')) {
            let kind = match value_of(key) {
                Value::Files => "files".to_owned(),
                Value::Words(words) => format!("words:{words}"),
                Value::Other => continue,
            };
            let _ = writeln!(parts, "        {option},{key}) kind='{kind}' ;;");
        }
    }
    FUNCTIONS
        .replace("        @KINDS@\n", &tables.kinds)
        .replace("        @COMMANDS@\n", &tables.commands)
        .replace("        @ARGUMENTS@\n", &tables.arguments)
        .replace("        @PARTS@\n", &parts)
        .replace("@TARGETS@", TARGET_WORDS)
}

/// The cases of what depends on the command, which is named by all words that lead to it.
#[derive(Default)]
struct Tables {
    /// What kind of value an option takes.
    kinds: String,
    /// The options of a command, its subcommands, and how many arguments come before these.
    commands: String,
    /// What an argument is, by its place.
    arguments: String,
}

impl Tables {
    fn add(&mut self, path: &str, command: &Command) {
        let mut options = Vec::new();
        for argument in command.get_arguments() {
            let names = names(argument);
            options.extend(names.iter().cloned());
            if let (Some((kind, apart)), false) = (kind(argument), names.is_empty()) {
                let names: Vec<_> = names
                    .iter()
                    .map(|option| format!("'{path},{option}'"))
                    .collect();
                // Writing to a String cannot fail.
                let _ = writeln!(
                    self.kinds,
                    "        {}) kind='{kind}' apart={} ;;",
                    names.join("|"),
                    u8::from(apart)
                );
            }
        }
        let mut after = 0;
        for (place, argument) in command.get_positionals().enumerate() {
            let many = argument
                .get_num_args()
                .is_some_and(|count| count.max_values() > 1);
            let place = if many {
                "*".to_owned()
            } else {
                format!("'{place}'")
            };
            if let Some((kind, _)) = kind(argument) {
                let _ = writeln!(self.arguments, "        '{path},'{place}) free='{kind}' ;;");
            }
            after += 1;
        }
        let subcommands: Vec<_> = command.get_subcommands().map(Command::get_name).collect();
        let _ = writeln!(
            self.commands,
            "        '{path}') options='{}' subcommands='{}' after={after} ;;",
            options.join(" "),
            subcommands.join(" ")
        );
        for subcommand in command.get_subcommands() {
            let name = subcommand.get_name();
            match path {
                "" => self.add(name, subcommand),
                path => self.add(&format!("{path} {name}"), subcommand),
            }
        }
    }
}

fn names(argument: &Arg) -> Vec<String> {
    let long = argument.get_long().map(|long| format!("--{long}"));
    let short = argument.get_short().map(|short| format!("-{short}"));
    long.into_iter().chain(short).collect()
}

/// What kind of value it takes, if any, and whether that may be a word of its own.
fn kind(argument: &Arg) -> Option<(String, bool)> {
    if !argument.get_action().takes_values() {
        return None;
    }
    let name = argument.get_long().unwrap_or_default();
    let values: Vec<_> = argument
        .get_possible_values()
        .iter()
        .map(|value| value.get_name().to_owned())
        .collect();
    let is_limit = argument
        .get_value_names()
        .is_some_and(|names| names.iter().any(|name| name == LIMIT));
    let kind = if !values.is_empty() {
        format!("words:{}", values.join(" "))
    } else if is_limit {
        format!("parts:{LIMIT}")
    } else if PARTS.iter().any(|(option, _)| *option == name) {
        format!("parts:{name}")
    } else if TARGETS.contains(&name) {
        "target".to_owned()
    } else if matches!(
        argument.get_value_hint(),
        ValueHint::AnyPath | ValueHint::FilePath
    ) {
        "files".to_owned()
    } else {
        "none".to_owned()
    };
    Some((kind, !argument.is_require_equals_set()))
}
