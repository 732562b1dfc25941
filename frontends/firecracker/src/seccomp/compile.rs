//! `seccompiler-bin`: makes a file of filters of a JSON file. Arguments and JSON are those of Firecracker's program
//! (docs/seccompiler.md of its repository); the file that it makes is ours ([`container`](super::container)). A filter is
//! compiled by the crate seccompiler.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use seccompiler::TargetArch;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::container::{
    ContainerError, LONGEST_NAME, LONGEST_PROGRAM, MAGIC, MOST_PROGRAMS, Programs,
};
use crate::files::{open_regular, put_new, replace, resolved, too_large_is_an_error};
use crate::version::VERSION;

/// The longest JSON file, in bytes.
const LONGEST_JSON: u64 = 1 << 20;
/// Architectures, as `--target-arch` names them.
const ARCHITECTURES: [&str; 3] = ["x86_64", "aarch64", "riscv64"];
/// The most conditions of a rule: a call has 6 arguments.
const MOST_CONDITIONS: usize = 64;
/// Calls of x32 have this bit in their numbers, and the architecture of others (Documentation/userspace-api/seccomp_filter.rst
/// of Linux).
const X32: u32 = 0x4000_0000;

/// Makes a file of filters of system calls of a JSON file, for --seccomp-filter
#[derive(Debug, Parser)]
#[command(name = "seccompiler-bin", version = VERSION)]
struct Arguments {
    /// The architecture that the filters are for: x86_64, aarch64 or riscv64
    #[arg(short, long, value_name = "ARCH")]
    target_arch: String,
    /// The JSON file
    #[arg(short, long, value_name = "FILE")]
    input_file: PathBuf,
    /// The file that is made. One that is there has to be such a file, or empty
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "seccomp_binary_filter.out"
    )]
    output_file: PathBuf,
    /// Leaves away what is said of arguments: a call that is named is what counts. Not recommended
    #[arg(short, long)]
    basic: bool,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("--target-arch {0}: there are x86_64, aarch64 and riscv64")]
    Architecture(String),
    #[error("--input-file {}: {error}", .path.display())]
    Input { path: PathBuf, error: io::Error },
    #[error("--input-file {}: {cause}", .path.display())]
    Content { path: PathBuf, cause: String },
    #[error("--output-file {}: {error}", .path.display())]
    Output { path: PathBuf, error: io::Error },
    #[error("--output-file {}: there is another file, which is left alone: name one that is not there", .0.display())]
    Other(PathBuf),
}

/// A filter as the JSON file has it.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct JsonFilter {
    default_action: Action,
    filter_action: Action,
    filter: Vec<JsonRule>,
    #[serde(default, skip_serializing)]
    #[allow(dead_code)] // for whoever reads the file
    comment: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct JsonRule {
    syscall: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    args: Option<Vec<JsonCondition>>,
    #[serde(default, skip_serializing)]
    #[allow(dead_code)] // for whoever reads the file
    comment: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct JsonCondition {
    #[serde(alias = "arg_index")]
    index: u8,
    #[serde(rename = "type", alias = "arg_type")]
    len: ArgumentLen,
    op: Operator,
    val: u64,
    #[serde(default, skip_serializing)]
    #[allow(dead_code)] // for whoever reads the file
    comment: Option<String>,
}

#[derive(Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Action {
    Allow,
    Errno(u16),
    KillThread,
    KillProcess,
    Log,
    Trace(u16),
    Trap,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum ArgumentLen {
    Dword,
    Qword,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Operator {
    Eq,
    Ge,
    Gt,
    Le,
    Lt,
    MaskedEq(u64),
    Ne,
}

/// Filters by the names of their threads, each once.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct JsonFilters(BTreeMap<String, JsonFilter>);

impl<'de> Deserialize<'de> for JsonFilters {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Filters;
        impl<'de> Visitor<'de> for Filters {
            type Value = JsonFilters;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("filters by the names of their threads")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonFilters, A::Error> {
                let mut filters = BTreeMap::new();
                while let Some((name, filter)) = map.next_entry::<String, JsonFilter>()? {
                    if filters.contains_key(&name) {
                        let twice = format!("the thread {name:?} is there twice");
                        return Err(serde::de::Error::custom(twice));
                    }
                    filters.insert(name, filter);
                }
                Ok(JsonFilters(filters))
            }
        }
        from.deserialize_map(Filters)
    }
}

impl JsonCondition {
    /// A number that is longer than the argument would be cut, and the rule would be about another value.
    fn check(&self) -> Result<(), String> {
        if matches!(self.len, ArgumentLen::Qword) {
            return Ok(());
        }
        let mask = match self.op {
            Operator::MaskedEq(mask) => mask,
            _ => 0,
        };
        let numbers = [("val", self.val), ("masked_eq", mask)];
        match numbers
            .into_iter()
            .find(|(_, value)| *value > u32::MAX.into())
        {
            None => Ok(()),
            Some((field, value)) => Err(format!(
                "{field} is {value}, and {} is the most of a \"dword\", which is the lower half of an argument: make it \
                 smaller, or the type \"qword\"",
                u32::MAX
            )),
        }
    }
}

impl JsonFilters {
    /// Checks what the crate does not, and has each filter mean what it says: a call that one rule has without conditions
    /// counts whatever another rule asks of its arguments.
    fn prepare(&mut self, basic: bool) -> Result<(), String> {
        if self.0.len() > MOST_PROGRAMS {
            let found = self.0.len();
            return Err(format!(
                "there are {found} threads, and {MOST_PROGRAMS} is the most"
            ));
        }
        for (name, filter) in &mut self.0 {
            if name.len() > LONGEST_NAME || name.is_empty() {
                return Err(format!(
                    "the thread {name:?}: a name has 1 to {LONGEST_NAME} bytes"
                ));
            }
            if filter.default_action == filter.filter_action {
                return Err(format!(
                    "the thread {name:?}: default_action and filter_action are the same, so that its rules change nothing"
                ));
            }
            for rule in &mut filter.filter {
                if basic || rule.args.as_ref().is_some_and(Vec::is_empty) {
                    rule.args = None;
                }
                let conditions = rule.args.as_ref().map_or(0, Vec::len);
                if conditions > MOST_CONDITIONS {
                    return Err(format!(
                        "the thread {name:?}, syscall {:?}: it has {conditions} args, and {MOST_CONDITIONS} is the most",
                        rule.syscall
                    ));
                }
                for condition in rule.args.iter().flatten() {
                    condition.check().map_err(|cause| {
                        let (syscall, index) = (&rule.syscall, condition.index);
                        format!("the thread {name:?}, syscall {syscall:?}, the argument {index}: {cause}")
                    })?;
                }
            }
            let rules = filter.filter.iter();
            let whole: BTreeSet<_> = rules
                .filter(|rule| rule.args.is_none())
                .map(|rule| rule.syscall.clone())
                .collect();
            let rules = &mut filter.filter;
            rules.retain(|rule| rule.args.is_none() || !whole.contains(&rule.syscall));
        }
        Ok(())
    }
}

/// Compiles the filters of a JSON file's bytes, for an architecture by the name of `--target-arch`.
///
/// # Errors
/// Says what is wrong with which thread's filter.
pub fn compile(json: &[u8], arch: &str, basic: bool) -> Result<Programs, String> {
    let arch = arch.to_lowercase();
    let unknown = || format!("there is no architecture {arch:?}");
    let target = TargetArch::try_from(arch.as_str()).map_err(|_| unknown())?;
    let architecture = jail::architecture(&arch).ok_or_else(unknown)?;
    let mut filters: JsonFilters =
        serde_json::from_slice(json).map_err(|error| error.to_string())?;
    filters.prepare(basic)?;
    let mut programs = BTreeMap::new();
    for (name, filter) in filters.0 {
        let wrong = |cause: String| format!("the thread {name:?}: {cause}");
        // One after the other, so that what is wrong has a name.
        let one = BTreeMap::from([(name.clone(), filter)]);
        let one = serde_json::to_vec(&one).map_err(|error| wrong(error.to_string()))?;
        let mut compiled = seccompiler::compile_from_json(&one[..], target)
            .map_err(|error| wrong(error.to_string()))?;
        let program = compiled.remove(&name).unwrap_or_default();
        let steps = program.iter().map(|step| {
            let (code, jt, jf) = (step.code.into(), step.jt.into(), step.jf.into());
            instruction(code, jt, jf, step.k)
        });
        let mut whole = before(&arch);
        whole.extend(steps);
        if whole.len() > LONGEST_PROGRAM {
            let found = whole.len();
            return Err(wrong(format!(
                "it makes {found} instructions, and {LONGEST_PROGRAM} is the most: leave rules away"
            )));
        }
        programs.insert(name, whole);
    }
    let compiled = Programs {
        architecture,
        programs,
    };
    Ok(compiled)
}

fn instruction(code: u64, jt: u64, jf: u64, value: u32) -> u64 {
    code | jt << 16 | jf << 24 | u64::from(value) << 32
}

/// What a program begins with: calls of x32, which no rule names, end the process. Else a filter that lets through what it
/// does not name would let all of them through.
fn before(arch: &str) -> Vec<u64> {
    const LOAD: u64 = 0x20;
    const AT_LEAST: u64 = 0x35;
    const RETURN: u64 = 0x06;
    match arch {
        "x86_64" => vec![
            instruction(LOAD, 0, 0, 0),
            instruction(AT_LEAST, 0, 1, X32),
            instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        ],
        _ => Vec::new(),
    }
}

/// Does what the arguments of the process say, and gives its exit status.
#[must_use]
pub fn main() -> ExitCode {
    too_large_is_an_error();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Who has closed stderr does not want to know.
            let _ = writeln!(io::stderr(), "Error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let arch = &arguments.target_arch;
    if !ARCHITECTURES.contains(&&*arch.to_lowercase()) {
        return Err(Failure::Architecture(arch.clone()));
    }
    let path = &arguments.input_file;
    let wrong = |cause: String| Failure::Content {
        path: path.clone(),
        cause,
    };
    let json = read(path).map_err(|error| Failure::Input {
        path: path.clone(),
        error,
    })?;
    if json.len() as u64 > LONGEST_JSON {
        return Err(wrong(format!("it has more than {LONGEST_JSON} bytes")));
    }
    let programs = compile(&json, arch, arguments.basic).map_err(wrong)?;
    let bytes = programs
        .to_bytes()
        .map_err(|error: ContainerError| wrong(error.to_string()))?;
    put(&arguments.output_file, &bytes)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One that is longer is refused for that.
    open_regular(path, false)?
        .take(LONGEST_JSON + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Puts the file into its place, or that of what a link there leads to. Another kind of file that is there is somebody's.
fn put(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |error| Failure::Output {
        path: path.to_owned(),
        error,
    };
    let place = resolved(path).map_err(failed)?;
    let mut before = match open_regular(&place, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return put_new(&place, bytes).map_err(|error| match error.kind() {
                // Somebody has made it meanwhile.
                io::ErrorKind::AlreadyExists => Failure::Other(path.to_owned()),
                _ => failed(error),
            });
        }
        Err(error) => return Err(failed(error)),
    };
    let mut begins = Vec::new();
    let read = (&mut before)
        .take(MAGIC.len() as u64)
        .read_to_end(&mut begins);
    read.map_err(failed)?;
    if !begins.is_empty() && begins != MAGIC {
        return Err(Failure::Other(path.to_owned()));
    }
    replace(&place, bytes, &before).map_err(failed)
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
