//! What is said about a command line that cannot be used, where the parser does not know better, and the parts
//! of the help that depend on what this build has.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{FAILED, USAGE, say};

/// Options whose value may be left away, so that it has to stand after `=`.
const EQUALS: [&str; 2] = ["--console", "--balloon"];

const COMMANDS: [&str; 3] = ["plan", "inspect", "doctor"];

/// An option, what it stands for, its feature, and whether this build has that.
macro_rules! optional {
    ($($option:literal $what:literal $feature:literal),+ $(,)?) => {
        &[$(($option, $what, $feature, cfg!(feature = $feature))),+]
    };
}

const OPTIONAL: &[(&str, &str, &str, bool)] = optional![
    "--serial" "serial console" "serial",
    "--blk" "disks" "virtio-blk",
    "--net" "network devices" "virtio-net",
    "--vsock" "sockets to the host" "virtio-vsock",
    "--console" "virtio console" "virtio-console",
    "--balloon" "memory balloon" "virtio-balloon",
    "--rng" "random bytes for the guest" "virtio-rng",
    "--transport" "virtio devices" "virtio",
    "--config" "configuration files" "config-file",
    "--dump-config" "configuration files" "config-file",
];

/// Prints what the parser has to say, help and version included; gives the exit status.
pub(super) fn end(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    if let Some((cause, cure)) = explain(error, arguments) {
        say(&format!("error: {cause}"));
        say(&format!("  cure: {cure}"));
        return USAGE.into();
    }
    let is_error = error.use_stderr();
    match error.print() {
        Err(_) if !is_error => FAILED.into(),
        _ => u8::try_from(error.exit_code()).unwrap_or(USAGE).into(),
    }
}

/// Cause and cure of an error of which more is known here.
fn explain(error: &clap::Error, arguments: &[OsString]) -> Option<(String, String)> {
    let misplaced = match error.kind() {
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand => false,
        ErrorKind::ArgumentConflict => true,
        _ => return None,
    };
    if let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) {
        let name = word.split('=').next().unwrap_or_default();
        let lacking = OPTIONAL
            .iter()
            .find(|(option, _, _, built)| *option == name && !built);
        if let Some((option, what, feature, _)) = lacking {
            let cause = format!("{option}: this build has no {what}");
            return Some((cause, format!("build with the feature {feature}")));
        }
    }
    let is_command = |word: &str| COMMANDS.contains(&word);
    let value = arguments.windows(2).find_map(|pair| match pair {
        [option, word] => {
            let (option, word) = (option.to_str()?, word.to_str()?);
            let is_value = EQUALS.contains(&option) && !word.starts_with('-') && !is_command(word);
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

/// The formats of kernels that this build boots.
pub(super) fn kernel() -> String {
    let formats: Vec<&str> = [
        ("bzImage", cfg!(feature = "bzimage")),
        ("ELF", cfg!(feature = "elf")),
        ("Image", cfg!(feature = "image")),
    ]
    .into_iter()
    .filter_map(|(format, built)| built.then_some(format))
    .collect();
    let packed = if cfg!(feature = "packed-kernels") {
        ", packed or not"
    } else {
        ""
    };
    let default = if cfg!(feature = "hello-guest") {
        " [default: a built-in guest]"
    } else {
        ""
    };
    let formats = match formats.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => "of no format: this build boots none".to_owned(),
    };
    format!("Kernel image: {formats}{packed}, found by content{default}")
}

#[cfg(feature = "serial")]
pub(super) fn serial() -> String {
    let with_console = if cfg!(feature = "virtio-console") {
        "; null when --console is stdio"
    } else {
        ""
    };
    format!("Serial console: stdio, null or file=PATH [default: stdio{with_console}]")
}

#[cfg(feature = "virtio")]
pub(super) fn transport() -> &'static str {
    if cfg!(feature = "pci") {
        "How virtio devices reach the guest: on a PCI bus, or as registers of their own, for kernels \
         without PCI [default: pci]"
    } else {
        "How virtio devices reach the guest: as registers of their own [default: mmio]"
    }
}

#[cfg(feature = "config-file")]
pub(super) fn config() -> String {
    let lists = match (cfg!(feature = "virtio-blk"), cfg!(feature = "virtio-net")) {
        (true, true) => ", --blk and --net all of its disks and network devices",
        (true, false) => ", --blk all of its disks",
        (false, true) => ", --net all of its network devices",
        (false, false) => "",
    };
    format!(
        "A configuration in TOML or JSON, by the name's ending; options given here replace what it \
         says{lists}"
    )
}
