//! The command line: `--flag value`, and what follows `--` is the program's.

use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};

use crate::error::{JailerError, Result};

/// Where jails are when nobody says so.
const BASE: &str = "/srv/jailer";
/// Most files that the program may have open when nobody says so.
const FILES: u64 = 2048;
/// The longest name of a jail.
const LONGEST_ID: usize = 64;

/// The limits among the files of every cgroup. Others of that name, and those without a dot, are for whoever runs
/// cgroups: they move, freeze or end processes, also such as are not the jail's, or have the kernel start programs.
const COMMON_LIMITS: [&str; 2] = ["cgroup.max.depth", "cgroup.max.descendants"];

/// A flag: its name, what its value is called if it takes one, whether it may be repeated, and what it does.
type Flag = (&'static str, Option<&'static str>, bool, &'static str);

const FLAGS: &[Flag] = &[
    (
        "cgroup",
        Some("FILE=VALUE"),
        true,
        "writes VALUE to FILE of a cgroup of its own; may be repeated",
    ),
    ("cgroup-version", Some("VERSION"), false, "1 or 2; 1"),
    (
        "chroot-base-dir",
        Some("FOLDER"),
        false,
        "where jails are; /srv/jailer",
    ),
    (
        "daemonize",
        None,
        false,
        "a new session, with /dev/null as standard input and outputs",
    ),
    (
        "exec-file",
        Some("FILE"),
        false,
        "the program, which has to be static (required)",
    ),
    (
        "gid",
        Some("NUMBER"),
        false,
        "the group that the program gets; an ordinary user's own (required)",
    ),
    ("help", None, false, "prints this"),
    (
        "id",
        Some("ID"),
        false,
        "what the jail is called: 1 to 64 letters, digits and - (required)",
    ),
    ("netns", Some("FILE"), false, "joins this network namespace"),
    (
        "new-pid-ns",
        None,
        false,
        "a new namespace of processes, in which the program is the first",
    ),
    (
        "parent-cgroup",
        Some("PATH"),
        false,
        "the cgroup above its own, from where they are mounted; the program's name",
    ),
    (
        "resource-limit",
        Some("WHAT=NUMBER"),
        true,
        "fsize=BYTES or no-file=NUMBER (2048); may be repeated",
    ),
    (
        "uid",
        Some("NUMBER"),
        false,
        "the user that the program becomes; an ordinary user's own (required)",
    ),
    ("version", None, false, "prints the version"),
];

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Invocation {
    Run(Box<Arguments>),
    Help,
    Version,
}

/// Whom to jail, and how.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) id: String,
    pub(crate) exec_file: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) base: PathBuf,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) daemonize: bool,
    pub(crate) new_pid_ns: bool,
    pub(crate) cgroups: CgroupWish,
    pub(crate) limits: Limits,
    /// For the program.
    pub(crate) rest: Vec<OsString>,
}

/// Which cgroup, and with what in its files.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CgroupWish {
    pub(crate) version: Version,
    /// None: the program's name.
    pub(crate) parent: Option<PathBuf>,
    pub(crate) properties: Vec<Property>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// A value for a file of a cgroup.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Property {
    pub(crate) file: String,
    pub(crate) value: String,
}

impl Property {
    fn parse(text: &str) -> Result<Self> {
        // A value may have more of them: `io.max=8:0 rbps=1048576`.
        let (file, value) = text
            .split_once('=')
            .filter(|(_, value)| !value.is_empty())
            .ok_or_else(|| JailerError::CgroupFormat(text.to_owned()))?;
        let is_name = !file.contains('/')
            && file.split_once('.').is_some_and(|(controller, rest)| {
                !controller.is_empty() && !rest.is_empty() && rest != "."
            });
        if !is_name {
            return Err(JailerError::CgroupFile(text.to_owned()));
        }
        let property = Self {
            file: file.to_owned(),
            value: value.to_owned(),
        };
        if property.controller() == "cgroup" && !COMMON_LIMITS.contains(&file) {
            return Err(JailerError::CgroupNoLimit(text.to_owned()));
        }
        Ok(property)
    }

    pub(crate) fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or_default()
    }
}

/// Limits of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The longest file that it may write, in bytes.
    pub(crate) file_size: Option<u64>,
    pub(crate) files: u64,
}

impl Limits {
    fn parse<'a>(texts: impl Iterator<Item = Result<&'a str>>) -> Result<Self> {
        let mut limits = Self {
            file_size: None,
            files: FILES,
        };
        for text in texts {
            let text = text?;
            let bad = || JailerError::Limit(text.to_owned());
            let (name, value) = text.split_once('=').ok_or_else(bad)?;
            let value = value.parse().map_err(|_| bad())?;
            match name {
                "fsize" => limits.file_size = Some(value),
                "no-file" => limits.files = value,
                _ => return Err(bad()),
            }
        }
        Ok(limits)
    }
}

/// What `--help` prints.
pub(crate) fn help() -> String {
    let mut text =
        "USAGE: jailer [--FLAG [VALUE]] … [-- ARGUMENTS OF THE PROGRAM …]\n\n".to_owned();
    for (name, value, _, about) in FLAGS {
        let flag = match value {
            Some(value) => format!("--{name} {value}"),
            None => format!("--{name}"),
        };
        text.push_str(&format!("  {flag:<30}{about}\n"));
    }
    text
}

/// The flags that were given, in order.
struct Given(Vec<(&'static str, OsString)>);

impl Given {
    fn all(&self, name: &str) -> impl Iterator<Item = &OsStr> {
        self.0
            .iter()
            .filter(move |(other, _)| *other == name)
            .map(|(_, value)| value.as_os_str())
    }

    fn texts(&self, name: &'static str) -> impl Iterator<Item = Result<&str>> {
        self.all(name).map(move |value| {
            let not_text = || {
                usage(format!(
                    "the value of '--{name}' is not UTF-8: {}",
                    value.display()
                ))
            };
            value.to_str().ok_or_else(not_text)
        })
    }

    fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    fn required(&self, name: &'static str) -> Result<&OsStr> {
        self.all(name)
            .next()
            .ok_or_else(|| usage(format!("The argument '{name}' is required, and missing.")))
    }

    fn required_text(&self, name: &'static str) -> Result<&str> {
        self.required(name)?;
        self.texts(name).next().unwrap_or(Ok(""))
    }
}

fn usage(text: String) -> JailerError {
    JailerError::Arguments(text)
}

pub(crate) fn parse(arguments: &[OsString]) -> Result<Invocation> {
    let end = arguments.iter().position(|argument| argument == "--");
    let (own, rest) = match end {
        Some(end) => (&arguments[..end], &arguments[end + 1..]),
        None => (arguments, [].as_slice()),
    };
    // Whoever asks for these is answered, whatever else is wrong.
    let asks = |flag: &str| own.iter().any(|argument| argument == flag);
    if asks("--help") || asks("-h") {
        return Ok(Invocation::Help);
    }
    if asks("--version") {
        return Ok(Invocation::Version);
    }
    let given = given(own)?;
    let base = given
        .all("chroot-base-dir")
        .next()
        .unwrap_or(OsStr::new(BASE));
    Ok(Invocation::Run(Box::new(Arguments {
        id: id(given.required_text("id")?)?,
        exec_file: given.required("exec-file")?.into(),
        uid: number("uid", given.required_text("uid")?)?,
        gid: number("gid", given.required_text("gid")?)?,
        base: base.into(),
        netns: given.all("netns").next().map(PathBuf::from),
        daemonize: given.has("daemonize"),
        new_pid_ns: given.has("new-pid-ns"),
        cgroups: CgroupWish {
            version: version(given.texts("cgroup-version").next().transpose()?)?,
            parent: given.all("parent-cgroup").next().map(parent).transpose()?,
            properties: given
                .texts("cgroup")
                .map(|text| Property::parse(text?))
                .collect::<Result<_>>()?,
        },
        limits: Limits::parse(given.texts("resource-limit"))?,
        rest: rest.to_vec(),
    })))
}

fn given(arguments: &[OsString]) -> Result<Given> {
    let mut given: Vec<(&'static str, OsString)> = Vec::new();
    let mut rest = arguments.iter().peekable();
    while let Some(argument) = rest.next() {
        let name = argument.to_str().and_then(|text| text.strip_prefix("--"));
        let known = FLAGS.iter().find(|(known, ..)| name == Some(known));
        let Some((name, value, repeats, _)) = known else {
            return Err(usage(format!(
                "there is no argument '{}' here.",
                argument.display()
            )));
        };
        if !repeats && given.iter().any(|(other, _)| other == name) {
            return Err(usage(format!("the argument '{name}' stands twice.")));
        }
        let value = match value {
            None => OsString::new(),
            Some(_) => rest
                .next_if(|value| !value.as_encoded_bytes().starts_with(b"--"))
                .cloned()
                .ok_or_else(|| usage(format!("the argument '{name}' needs a value.")))?,
        };
        given.push((name, value));
    }
    Ok(Given(given))
}

/// It becomes a folder and a cgroup: no separators, no dots.
fn id(text: &str) -> Result<String> {
    let len = text.len();
    if len == 0 || len > LONGEST_ID {
        // With two spaces, as clients look for it.
        let text = format!("Invalid len ({len});  the length must be between 1 and {LONGEST_ID}");
        return Err(JailerError::Id(text));
    }
    let bad = text
        .chars()
        .enumerate()
        .find(|(_, char)| !(char.is_ascii_alphanumeric() || *char == '-'));
    match bad {
        Some((at, char)) => Err(JailerError::Id(format!(
            "Invalid char ({char}) at position {at}"
        ))),
        None => Ok(text.to_owned()),
    }
}

/// The greatest number means "none" to the kernel, which would leave root what it is.
fn number(what: &'static str, text: &str) -> Result<u32> {
    let number = text.parse().ok().filter(|number| *number != u32::MAX);
    number.ok_or_else(|| JailerError::User(what, text.to_owned()))
}

fn version(text: Option<&str>) -> Result<Version> {
    match text.unwrap_or("1") {
        "1" => Ok(Version::V1),
        "2" => Ok(Version::V2),
        other => Err(JailerError::CgroupVersion(other.to_owned())),
    }
}

fn parent(path: &OsStr) -> Result<PathBuf> {
    let path = Path::new(path);
    let is_plain = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if is_plain {
        Ok(path.to_owned())
    } else {
        Err(JailerError::CgroupParent(path.to_owned()))
    }
}

#[cfg(test)]
mod tests;
