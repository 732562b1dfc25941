//! Completions for zsh: those of clap, with what it does not know of values that have parts.

use std::fmt::Write as _;
use std::io;

use clap::Command;
use clap_complete::Shell;

use super::parts::{LIMIT, PARTS, TARGET_WORDS, TARGETS, Value, value_of};

const FUNCTIONS: &str = include_str!("completion.zsh");
/// What clap's script ends with, and what it has for a value that it does not know.
const END: &str = "\nif [ \"$funcstack[1]\" = ";
const UNKNOWN: &str = ":_default'";

/// The script.
///
/// # Errors
/// When clap's own is not as it was: then some options would be completed no longer, without a word.
pub(super) fn script(command: &mut Command) -> io::Result<String> {
    command.build();
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(Shell::Zsh, command, &name, &mut text);
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    let mut kinds: Vec<(String, String)> = Vec::new();
    for (option, _) in PARTS {
        kinds.push((
            option.to_owned(),
            format!(": _vmm_reference_parts {option}'"),
        ));
    }
    for option in TARGETS {
        kinds.push((option.to_owned(), ": _vmm_reference_target'".to_owned()));
    }
    let mut script = String::new();
    let mut replaced = vec![0; kinds.len()];
    for line in text.lines() {
        let of = |option: &str| match option {
            LIMIT => line.contains("words -- bw=BYTES"),
            option => line
                .trim_start_matches(['\'', '*'])
                .starts_with(&format!("--{option}=")),
        };
        let place = kinds.iter().position(|(option, _)| of(option));
        match place.and_then(|place| Some((place, kinds.get(place)?))) {
            Some((place, (_, action))) if line.contains(UNKNOWN) => {
                script.push_str(&line.replace(UNKNOWN, action));
                if let Some(count) = replaced.get_mut(place) {
                    *count += 1;
                }
            }
            _ => script.push_str(line),
        }
        script.push('\n');
    }
    let missing = kinds.iter().zip(&replaced).find(|(_, count)| **count == 0);
    if let Some(((option, _), _)) = missing {
        let text = format!("the script for zsh has no place for the values of {option}");
        return Err(io::Error::other(text));
    }
    let Some((head, tail)) = script.split_once(END) else {
        return Err(io::Error::other("the script for zsh has no end"));
    };
    Ok(format!("{head}\n{}{END}{tail}", functions()))
}

fn functions() -> String {
    let (mut keys, mut values) = (String::new(), String::new());
    for (option, known) in PARTS {
        // Writing to a String cannot fail.
        let _ = writeln!(keys, "        {option}) keys=({}) ;;", known.join(" "));
        for key in known.iter().filter(|key| key.ends_with('=')) {
            let action = match value_of(key) {
                Value::Files => "_files -S ''".to_owned(),
                Value::Words(words) => format!("compadd -S '' -- {words}"),
                Value::Other => continue,
            };
            let _ = writeln!(values, "        {option},{key}) {action} ;;");
        }
    }
    FUNCTIONS
        .replace("        @KEYS@\n", &keys)
        .replace("        @VALUES@\n", &values)
        .replace("@TARGETS@", TARGET_WORDS)
}
