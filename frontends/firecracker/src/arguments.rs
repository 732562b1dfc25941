//! The command line. Its grammar is `--flag value` and nothing else: what many programs make of it is theirs.

use std::path::PathBuf;

use crate::api::bodies::{LevelFilter, LoggerConfig, MetricsConfig};

/// Where the API's socket is when nobody says so.
const API_SOCKET: &str = "/run/firecracker.socket";
/// What a machine without a name is called.
const ID: &str = "anonymous-instance";
/// The longest body of a request, in bytes.
const PAYLOAD: usize = 51_200;

/// What to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Invocation {
    Run(Box<Arguments>),
    Help,
    Version,
    SnapshotVersion,
    DescribeSnapshot(PathBuf),
}

/// How to run.
#[derive(Debug, PartialEq)]
pub(crate) struct Arguments {
    pub(crate) api_sock: PathBuf,
    pub(crate) no_api: bool,
    pub(crate) id: String,
    pub(crate) config_file: Option<PathBuf>,
    pub(crate) metadata: Option<PathBuf>,
    pub(crate) seccomp: Seccomp,
    pub(crate) logger: LoggerConfig,
    pub(crate) metrics: Option<MetricsConfig>,
    pub(crate) boot_timer: bool,
    pub(crate) enable_pci: bool,
    pub(crate) payload_limit: usize,
    /// The longest metadata, in bytes of JSON.
    pub(crate) mmds_limit: usize,
    pub(crate) start: StartTimes,
}

/// The filters of system calls that threads have.
#[derive(Debug, PartialEq)]
pub(crate) enum Seccomp {
    Usual,
    Off,
    File(PathBuf),
}

/// When the process began, as whoever started it knows it, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StartTimes {
    pub(crate) wall: Option<u64>,
    pub(crate) cpu: Option<u64>,
    pub(crate) parent_cpu: Option<u64>,
}

/// What is wrong with a command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgumentError {
    #[error("Arguments parsing error: {0} \n\nFor more information try --help.")]
    Usage(String),
    #[error(
        "Invalid value for logger level: {0}.Possible values: [Error, Warning, Info, Debug, Trace, Off]"
    )]
    Level(String),
}

/// A flag: its name, what its value is called if it takes one, and what it does.
type Flag = (&'static str, Option<&'static str>, &'static str);

const FLAGS: &[Flag] = &[
    (
        "api-sock",
        Some("PATH"),
        "the API's socket; /run/firecracker.socket",
    ),
    (
        "boot-timer",
        None,
        "a device to which the guest tells that it has booted",
    ),
    (
        "config-file",
        Some("FILE"),
        "a machine in JSON, started at once",
    ),
    (
        "describe-snapshot",
        Some("FILE"),
        "prints the version of a snapshot's state file",
    ),
    ("enable-pci", None, "virtio devices are on a PCI bus"),
    ("help", None, "prints this"),
    (
        "http-api-max-payload-size",
        Some("BYTES"),
        "the longest body of a request; 51200",
    ),
    (
        "id",
        Some("ID"),
        "what the machine is called: 1 to 64 letters, digits and -",
    ),
    (
        "level",
        Some("LEVEL"),
        "what is logged: Off, Error, Warning, Info, Debug, Trace; Info",
    ),
    (
        "log-path",
        Some("FILE"),
        "where the log goes, a file or a FIFO; to stdout",
    ),
    (
        "metadata",
        Some("FILE"),
        "content of the metadata service, in JSON",
    ),
    (
        "metrics-path",
        Some("FILE"),
        "where metrics go, a file or a FIFO",
    ),
    (
        "mmds-size-limit",
        Some("BYTES"),
        "the longest content of the metadata service; as the longest body",
    ),
    ("module", Some("PATH"), "logs modules whose path begins so"),
    ("no-api", None, "no API, with --config-file"),
    (
        "no-seccomp",
        None,
        "threads have no filters of system calls",
    ),
    (
        "parent-cpu-time-us",
        Some("TIME"),
        "processor time of the parent, for metrics",
    ),
    (
        "seccomp-filter",
        Some("FILE"),
        "filters of system calls that seccompiler-bin has made",
    ),
    ("show-level", None, "log lines have their level"),
    (
        "show-log-origin",
        None,
        "log lines have their place in the source",
    ),
    ("snapshot-version", None, "prints the version of snapshots"),
    (
        "start-time-cpu-us",
        Some("TIME"),
        "processor time at the start, for metrics",
    ),
    (
        "start-time-us",
        Some("TIME"),
        "time of the start, for metrics",
    ),
    ("version", None, "prints the version"),
];

/// What `--help` prints.
pub(crate) fn help() -> String {
    let mut text = "USAGE: firecracker [--FLAG [VALUE]] … [-- …]\n\n".to_owned();
    for (name, value, about) in FLAGS {
        let flag = match value {
            Some(value) => format!("--{name} {value}"),
            None => format!("--{name}"),
        };
        text.push_str(&format!("  {flag:<34}{about}\n"));
    }
    text
}

/// The flags of a command line, each once.
struct Given(Vec<(&'static str, String)>);

impl Given {
    fn parse(arguments: &[String]) -> Result<Self, ArgumentError> {
        let usage = |text: String| Err(ArgumentError::Usage(text));
        let mut given: Vec<(&'static str, String)> = Vec::new();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next().filter(|argument| *argument != "--") {
            let known = FLAGS
                .iter()
                .find(|(name, ..)| argument.strip_prefix("--") == Some(name));
            let Some((name, value, _)) = known else {
                return usage(format!("there is no argument '{argument}' here."));
            };
            if given.iter().any(|(other, _)| other == name) {
                return usage(format!("the argument '{name}' stands twice."));
            }
            let value = match (value, rest.as_slice().first()) {
                (None, _) => String::new(),
                (Some(_), Some(value)) if !value.starts_with("--") => {
                    rest.next();
                    value.clone()
                }
                (Some(_), _) => return usage(format!("the argument '{name}' needs a value.")),
            };
            given.push((name, value));
        }
        Ok(Self(given))
    }

    fn value(&self, name: &str) -> Option<&str> {
        let mut given = self.0.iter();
        let found = given.find(|(other, _)| *other == name);
        found.map(|(_, value)| value.as_str())
    }

    fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.value(name).map(PathBuf::from)
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, ArgumentError> {
        let number = |text: &str| {
            text.parse().map_err(|_| {
                ArgumentError::Usage(format!("'{name}' is a whole number, not '{text}'."))
            })
        };
        self.value(name).map(number).transpose()
    }
}

/// Reads the arguments behind the program's name.
pub(crate) fn parse(arguments: &[String]) -> Result<Invocation, ArgumentError> {
    // Whoever asks for one of these gets it, whatever else stands there.
    let mut words = arguments.iter().take_while(|argument| *argument != "--");
    if let Some(word) = words.find(|word| ["--help", "-h", "--version"].contains(&word.as_str())) {
        return Ok(match word.as_str() {
            "--version" => Invocation::Version,
            _ => Invocation::Help,
        });
    }
    let given = Given::parse(arguments)?;
    let usage = |text: &str| Err(ArgumentError::Usage(text.to_owned()));
    if given.has("snapshot-version") {
        return Ok(Invocation::SnapshotVersion);
    }
    if let Some(path) = given.value("describe-snapshot") {
        return Ok(Invocation::DescribeSnapshot(path.into()));
    }
    if given.has("no-api") && !given.has("config-file") {
        return usage("the argument 'no-api' needs 'config-file'.");
    }
    if given.has("no-seccomp") && given.has("seccomp-filter") {
        return usage("the arguments 'no-seccomp' and 'seccomp-filter' exclude each other.");
    }
    let id = given.value("id").unwrap_or(ID).to_owned();
    check_id(&id)?;
    let level = given
        .value("level")
        .map(|text| LevelFilter::parse(text).ok_or_else(|| ArgumentError::Level(text.to_owned())));
    let present = |name| given.has(name).then_some(true);
    let payload_limit = given
        .number("http-api-max-payload-size")?
        .unwrap_or(PAYLOAD);
    Ok(Invocation::Run(Box::new(Arguments {
        api_sock: given.path("api-sock").unwrap_or(API_SOCKET.into()),
        no_api: given.has("no-api"),
        id,
        config_file: given.path("config-file"),
        metadata: given.path("metadata"),
        seccomp: match given.path("seccomp-filter") {
            Some(path) => Seccomp::File(path),
            None if given.has("no-seccomp") => Seccomp::Off,
            None => Seccomp::Usual,
        },
        logger: LoggerConfig {
            log_path: given.path("log-path"),
            level: level.transpose()?,
            show_level: present("show-level"),
            show_log_origin: present("show-log-origin"),
            module: given.value("module").map(str::to_owned),
        },
        metrics: given.path("metrics-path").map(|path| MetricsConfig {
            metrics_path: path,
            emit_id: false,
            properties: None,
        }),
        boot_timer: given.has("boot-timer"),
        enable_pci: given.has("enable-pci"),
        payload_limit,
        mmds_limit: given.number("mmds-size-limit")?.unwrap_or(payload_limit),
        start: StartTimes {
            wall: given.number("start-time-us")?,
            cpu: given.number("start-time-cpu-us")?,
            parent_cpu: given.number("parent-cpu-time-us")?,
        },
    })))
}

/// What a machine may be called.
pub(crate) fn check_id(id: &str) -> Result<(), ArgumentError> {
    const LONGEST: usize = 64;
    if !(1..=LONGEST).contains(&id.len()) {
        return Err(ArgumentError::Usage(format!(
            "Invalid instance ID: Invalid len ({});  the length must be between 1 and {LONGEST}",
            id.len()
        )));
    }
    let wrong = id
        .char_indices()
        .find(|(_, letter)| !(letter.is_ascii_alphanumeric() || *letter == '-'));
    match wrong {
        Some((place, letter)) => Err(ArgumentError::Usage(format!(
            "Invalid instance ID: Invalid char ({letter}) at position {place}"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Invocation, ArgumentError> {
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        parse(&words)
    }

    fn run(line: &str) -> Arguments {
        match read(line) {
            Ok(Invocation::Run(arguments)) => *arguments,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn command_lines_as_clients_write_them() {
        let default = run("");
        assert_eq!(default.api_sock, PathBuf::from("/run/firecracker.socket"));
        assert_eq!(
            (&*default.id, default.payload_limit),
            ("anonymous-instance", 51_200)
        );
        // A jailer, and what stands behind `--`.
        let jailed = run(
            "--id 1-a --start-time-us 1 --start-time-cpu-us 2 --parent-cpu-time-us 3 \
                          --api-sock /run//fc.sock --no-seccomp -- --help x",
        );
        assert_eq!(jailed.api_sock, PathBuf::from("/run//fc.sock"));
        assert_eq!(
            (jailed.start.wall, jailed.start.parent_cpu),
            (Some(1), Some(3))
        );
        // flintlock.
        let file = run("--id a --boot-timer --no-api --config-file c.json --metadata m.json");
        assert!(file.boot_timer && file.no_api && file.metadata.is_some());
        // Metadata may be as long as a body, unless somebody says so.
        for (line, limits) in [
            ("", (51_200, 51_200)),
            ("--http-api-max-payload-size 9", (9, 9)),
            ("--mmds-size-limit 7", (51_200, 7)),
        ] {
            let arguments = run(line);
            assert_eq!((arguments.payload_limit, arguments.mmds_limit), limits);
        }
        let logged = run("--log-path l --level WARNING --show-level --module a::b");
        assert_eq!(logged.logger.level, LevelFilter::parse("warn"));
        assert_eq!(logged.logger.show_log_origin, None);
        for (line, what) in [
            ("--version --nonsense", Invocation::Version),
            ("--api-sock --help", Invocation::Help),
            ("-h", Invocation::Help),
            ("--snapshot-version", Invocation::SnapshotVersion),
            (
                "--describe-snapshot f",
                Invocation::DescribeSnapshot("f".into()),
            ),
        ] {
            assert_eq!(read(line), Ok(what), "{line}");
        }
        assert!(help().contains("--api-sock PATH"));
    }

    #[test]
    fn wrong_command_lines_are_refused() {
        for (line, cause) in [
            ("--nonsense", "no argument '--nonsense'"),
            ("--id=x", "no argument '--id=x'"),
            ("x", "no argument 'x'"),
            ("--id", "'id' needs a value"),
            ("--api-sock --id x", "'api-sock' needs a value"),
            ("--id a --id b", "'id' stands twice"),
            ("--no-api", "needs 'config-file'"),
            ("--no-seccomp --seccomp-filter f", "exclude each other"),
            ("--id a_b", "Invalid char (_) at position 1"),
            ("--http-api-max-payload-size x", "a whole number, not 'x'"),
            ("--start-time-us -1", "a whole number"),
            ("--mmds-size-limit 1k", "a whole number, not '1k'"),
            ("--level loud", "Invalid value for logger level"),
        ] {
            let error = read(line).unwrap_err().to_string();
            assert!(error.contains(cause), "{line}: {error}");
        }
        let error = parse(&["--id".to_owned(), "x".repeat(65)]).unwrap_err();
        assert!(error.to_string().contains("Invalid len (65)"));
    }
}
