//! Errors as users of the command line read them: with options where the library names keys of the
//! configuration.

use std::error::Error as _;

use clap::{ArgAction, CommandFactory};
use serde_json::{Value, json};
use vmm_reference::{ConfigPath, Error, HostPlatform, Level, VmConfig, diagnose};

use super::arguments::Cli;
use super::files;
use super::status::say;

/// An error, and what is said of it first.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Box<Error>,
    line: String,
}

impl Failure {
    /// An error that a configuration led to, whose devices are named by their own texts. `place` says where the
    /// configuration's file has a value, if it is from there.
    pub(super) fn of(
        error: Error,
        config: &VmConfig,
        place: impl Fn(&ConfigPath) -> Option<String>,
    ) -> Self {
        let line = first_line(&error, |field| device(field, config), place);
        Self {
            error: Box::new(error),
            line,
        }
    }

    /// The chain of causes on one line, the cure on the next, then the report of a failed vCPU.
    pub(super) fn report(&self) {
        say(&format!("error: {}", self.message()));
        if let Some(cure) = self.cure() {
            say(&format!("  cure: {cure}"));
        }
        let report = self.error.report();
        if let Some(report) = report.filter(|report| !report.is_empty()) {
            say(report);
        }
    }

    /// The same as JSON, for a command that was asked for it.
    pub(super) fn report_as_json(&self, kind: &str) {
        let mut object = json!({ "kind": kind, "message": self.message() });
        if let (Some(cure), Some(object)) = (self.cure(), object.as_object_mut()) {
            object.insert("cure".to_owned(), cure.into());
        }
        print_error(&object);
    }

    /// The chain of causes.
    fn message(&self) -> String {
        let mut text = self.line.clone();
        let mut source = self.error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    }

    fn cure(&self) -> Option<String> {
        // Nothing can be looked at from inside a sandbox.
        let can_look = self.error.is_failed_emulation() && !super::sandbox::is_entered();
        let of_this_host = can_look.then(interprets);
        of_this_host
            .flatten()
            .or(self.error.cure())
            .map(with_options)
    }
}

/// What helps against an instruction that KVM does not know, if this host interprets all of a guest's kernel.
fn interprets() -> Option<&'static str> {
    let checks = diagnose::<HostPlatform>();
    let interprets = checks
        .iter()
        .any(|check| check.name == "kernel_mode" && check.level == Level::Warn);
    interprets.then_some(
        "this host's KVM interprets kernel code and does not know this instruction; `vmm-reference doctor` \
         checks it. Stock kernels need a host with hardware virtualization",
    )
}

/// An error of a command that was asked for JSON, where its answer would be.
pub(super) fn print_error(error: &Value) {
    let text = json!({ "error": error }).to_string();
    if files::print(&text).is_err() {
        say(&text);
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let line = first_line(&error, |_| None, |_| None);
        Self {
            error: Box::new(error),
            line,
        }
    }
}

/// How the text of a device begins that stands at this place of the configuration, or which of several it is.
fn device(field: &ConfigPath, config: &VmConfig) -> Option<String> {
    let index = field.index()?;
    let (text, count) = match field.first() {
        "blk" => {
            let disk = config.blk.get(index)?;
            (disk.path.display().to_string(), config.blk.len())
        }
        "net" => (config.net.get(index)?.to_string(), config.net.len()),
        _ => return None,
    };
    match text.is_empty() {
        false => Some(format!("={text}")),
        true if count > 1 => Some(format!("[{index}]")),
        true => None,
    }
}

fn first_line(
    error: &Error,
    device: impl Fn(&ConfigPath) -> Option<String>,
    place: impl Fn(&ConfigPath) -> Option<String>,
) -> String {
    let Some((field, value)) = error.value() else {
        return error.to_string();
    };
    let place = match place(field) {
        Some(place) => format!("{place}: {}", field.with_value(value)),
        None => option(field, value, device(field).as_deref()),
    };
    match error {
        Error::Config { cause, .. } => format!("{place}: {}", with_options(cause)),
        _ => place,
    }
}

/// `--vcpus=0`, `--blk=a.img: queues=0`, `--balloon=target=2G`. `device` is what comes behind `--blk` there.
fn option(field: &ConfigPath, value: &str, device: Option<&str>) -> String {
    let first = field.first();
    let key = match field.rest().rsplit('.').next().unwrap_or_default() {
        "read-only" => "ro",
        key => key,
    };
    let equals = |value: &str| {
        if value.is_empty() {
            String::new()
        } else {
            format!("={value}")
        }
    };
    let device = device.unwrap_or_default();
    match (first, key) {
        // Arguments of commands, which have no names there.
        ("restore" | "snapshot", "") => value.to_owned(),
        // A text may begin with them.
        ("blk", "path") | ("net", "tap") => format!("--{first}{}", equals(value)),
        ("blk" | "net", "") if value.is_empty() => format!("--{first}{device}"),
        (_, "") => format!("--{first}{}", equals(value)),
        ("blk", _) | ("net", "mac" | "mtu" | "queues" | "queue-size") => {
            format!("--{first}{device}: {key}{}", equals(value))
        }
        // Of one direction, where it is in the path.
        ("net", key) if key.starts_with("bw") || key.starts_with("iops") => {
            let direction = field.rest().get(..3).filter(|start| start.ends_with('-'));
            let direction = direction.unwrap_or_default();
            format!("--{first}{device}: {direction}{key}{}", equals(value))
        }
        _ => format!("--{first}={key}{}", equals(value)),
    }
}

/// A text with the options of this program where it has keys of a configuration with values: `lean=auto`
/// becomes `--lean=auto`. Commands, which stand in backquotes, stay as they are.
pub(super) fn with_options(text: &str) -> String {
    let command = Cli::command();
    let others = ["plan", "restore"].map(|name| command.find_subcommand(name));
    let word = |word: &str| {
        let start = word.find(|c| c != '(').unwrap_or(word.len());
        let (before, rest) = word.split_at(start);
        let found = rest.split_once('=').and_then(|(key, value)| {
            let options = others.iter().flatten();
            let options = options.flat_map(|command| command.get_arguments());
            let option = command
                .get_arguments()
                .chain(options)
                .find(|option| option.get_long() == Some(key))?;
            match option.get_action() {
                ArgAction::SetTrue => {
                    let behind = value.strip_prefix("true")?;
                    Some(format!("{before}--{key}{behind}"))
                }
                _ => Some(format!("{before}--{rest}")),
            }
        });
        found.unwrap_or_else(|| word.to_owned())
    };
    let parts: Vec<String> = text
        .split('`')
        .enumerate()
        .map(|(place, part)| match place % 2 {
            0 => part.split_inclusive(' ').map(word).collect(),
            _ => part.to_owned(),
        })
        .collect();
    parts.join("`")
}

#[cfg(test)]
mod tests {
    use vmm_reference::{BlkConfig, NetConfig};

    use super::*;

    fn said(field: ConfigPath, value: &str, config: &VmConfig) -> String {
        let error = Error::Config {
            field,
            value: value.to_owned(),
            cause: "no".to_owned(),
            cure: String::new(),
        };
        Failure::of(error, config, |_| None).line
    }

    #[test]
    fn an_error_names_the_option_that_was_given() {
        let disk = |path: &str| BlkConfig::new(path);
        let net = NetConfig::default().with_fd(7);
        let one = VmConfig::default().with_disk(disk(""));
        let config = VmConfig::default()
            .with_disk(disk("a.img"))
            .with_disk(disk(""))
            .with_net(net);
        let blk = |place| ConfigPath::from("blk").item(place);
        let net = || ConfigPath::from("net").item(0);
        let key = |first, key| ConfigPath::from(first).key(key);
        for (field, value, line) in [
            ("vcpus".into(), "0", "--vcpus=0: no"),
            ("kernel".into(), "", "--kernel: no"),
            (blk(0).key("path"), "a.img", "--blk=a.img: no"),
            (blk(0).key("queues"), "0", "--blk=a.img: queues=0: no"),
            (blk(0).key("limits").key("bw"), "0", "--blk=a.img: bw=0: no"),
            (blk(1).key("queues"), "0", "--blk[1]: queues=0: no"),
            (blk(1), "", "--blk[1]: no"),
            (net().key("fd"), "7", "--net=fd=7: no"),
            (net().key("mtu"), "1", "--net=fd=7: mtu=1: no"),
            (key("vsock", "path"), "/v", "--vsock=path=/v: no"),
            (key("balloon", "target"), "2G", "--balloon=target=2G: no"),
        ] {
            assert_eq!(said(field, value, &config), line);
        }
        assert_eq!(said(blk(0), "", &one), "--blk: no");
    }

    #[test]
    fn cures_name_options_and_leave_commands_alone() {
        for (text, expected) in [
            (
                "give 1 to 255, or lean=auto",
                "give 1 to 255, or --lean=auto",
            ),
            (
                "more (guest-memory=SIZE), or overcommit=true when",
                "more (--guest-memory=SIZE), or --overcommit when",
            ),
            #[cfg(feature = "snapshot")]
            (
                "restore it with memory=lazy",
                "restore it with --memory=lazy",
            ),
            (
                "run `chmod u+w kernel=x`, kernel=x",
                "run `chmod u+w kernel=x`, --kernel=x",
            ),
            ("write tap=NAME,queues=N", "write tap=NAME,queues=N"),
            ("acpi=off: no lean machine", "acpi=off: no lean machine"),
        ] {
            assert_eq!(with_options(text), expected);
        }
    }
}
