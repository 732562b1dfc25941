//! Completions for bash.
//!
//! A script that knows for each command and option what kind of value it takes, and a function that is the same
//! for every program. bash breaks words at `=` and `:`, so the function looks at the line itself.

use std::fmt::Write as _;

use clap::{Arg, Command, ValueHint};

/// The options whose values have parts, with the parts' keys and the values that these may have.
const PARTS: [(&str, &[(&str, &str)]); 4] = [
    (
        "blk",
        &[
            ("path=", "files"),
            ("id=", ""),
            ("ro", ""),
            ("serial=", ""),
            ("engine=", "auto io_uring sync"),
            ("direct", ""),
            ("queues=", ""),
            ("queue-size=", ""),
            ("discard=", "off"),
            ("bw=", ""),
            ("bw-burst=", ""),
            ("iops=", ""),
            ("iops-burst=", ""),
        ],
    ),
    (
        "net",
        &[
            ("tap=", ""),
            ("fd=", ""),
            ("id=", ""),
            ("mac=", ""),
            ("mtu=", ""),
            ("queues=", ""),
            ("queue-size=", ""),
            ("bw=", ""),
            ("bw-burst=", ""),
            ("iops=", ""),
            ("iops-burst=", ""),
        ],
    ),
    ("vsock", &[("cid=", ""), ("id=", ""), ("path=", "files")]),
    (
        "balloon",
        &[
            ("target=", ""),
            ("id=", ""),
            ("deflate-on-oom", ""),
            ("free-page-reporting", ""),
            ("free-page-hinting", ""),
            ("stats-interval=", ""),
        ],
    ),
];
/// The options that say where a console goes.
const TARGETS: [&str; 2] = ["serial", "console"];

const FUNCTIONS: &str = include_str!("completion.bash");

/// The script.
pub(super) fn script(command: &mut Command) -> String {
    command.build();
    let mut kinds = String::new();
    let mut words = String::new();
    let subcommands: Vec<_> = command
        .get_subcommands()
        .map(|one| one.get_name().to_owned())
        .collect();
    let commands = std::iter::once(("", &*command))
        .chain(command.get_subcommands().map(|one| (one.get_name(), one)));
    for (name, command) in commands {
        let mut options = Vec::new();
        for argument in command.get_arguments() {
            let names = names(argument);
            if names.is_empty() {
                continue;
            }
            options.extend(names.iter().cloned());
            if let Some((kind, apart)) = kind(argument) {
                let names: Vec<_> = names
                    .iter()
                    .map(|option| format!("{name},{option}"))
                    .collect();
                // Writing to a String cannot fail.
                let _ = writeln!(
                    kinds,
                    "        {}) kind='{kind}' apart={} ;;",
                    names.join("|"),
                    u8::from(apart)
                );
            }
        }
        let positional = command
            .get_positionals()
            .find_map(|argument| kind(argument).map(|(kind, _)| kind));
        let free = match (name, positional) {
            ("", _) => format!("words:{}", subcommands.join(" ")),
            ("help", _) => format!("words:{}", subcommands.join(" ")),
            (_, Some(kind)) => kind,
            (_, None) => String::new(),
        };
        let _ = writeln!(
            words,
            "        '{name}') options='{}' free='{free}' ;;",
            options.join(" ")
        );
    }
    let mut parts = String::new();
    for (option, keys) in PARTS {
        let all: Vec<_> = keys.iter().map(|(key, _)| *key).collect();
        let _ = writeln!(
            parts,
            "        {option},) kind='words:{}' ;;",
            all.join(" ")
        );
        for (key, values) in keys.iter().filter(|(_, values)| !values.is_empty()) {
            let kind = if *values == "files" {
                "files".to_owned()
            } else {
                format!("words:{values}")
            };
            let _ = writeln!(parts, "        {option},{key}) kind='{kind}' ;;");
        }
    }
    FUNCTIONS
        .replace("        @KINDS@\n", &kinds)
        .replace("        @COMMANDS@\n", &words)
        .replace("        @PARTS@\n", &parts)
        .replace("@SUBCOMMANDS@", &subcommands.join(" | "))
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
    let kind = if !values.is_empty() {
        format!("words:{}", values.join(" "))
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
