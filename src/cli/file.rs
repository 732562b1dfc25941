//! Configuration files: TOML and JSON, with the keys of `VmConfig`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::de::{DeserializeOwned, DeserializeSeed};
use serde_json::{Map, Value};
use vmm_reference::{
    ConfigPath, Error, ReadError, Step, ValuePath, in_plain_words, read_unique, read_value,
};

use super::config::{Config, ConsoleTarget};
use super::files::read_text;
use super::locate::{Seek, steps, toml_key};
use super::sandbox::SandboxArgs;

const CURE: &str = "see docs/configuration.md, or --dump-config for a file that is right";
/// How alike a key has to be to what was written.
const ALIKE: f64 = 0.7;

/// The keys of a file that are not those of the VM.
const OWN_KEYS: [&str; 7] = [
    "serial", "console", "control", "sandbox", "cgroup", "uid", "gid",
];

/// A file's text and the parser that its name asks for.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    text: String,
    format: Format,
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Toml,
    Json,
}

/// Reads a configuration.
pub(super) fn read(path: &Path) -> Result<(Config, File), Error> {
    let format = match path.extension().and_then(|ending| ending.to_str()) {
        Some("toml") => Format::Toml,
        Some("json") => Format::Json,
        _ => {
            return Err(refuse(
                path,
                "its name ends neither in .toml nor in .json",
                CURE,
            ));
        }
    };
    let text = read_text("config", path)?;
    let path = path.to_owned();
    let file = File { path, text, format };
    let config = file.config()?;
    Ok((config, file))
}

/// Prints a configuration that can be used, as TOML.
pub(super) fn dump(config: &Config) -> Result<ExitCode, Error> {
    config.check()?;
    config.vm.machine()?;
    let text = table(config).and_then(|table| {
        let text = toml::to_string(&table);
        text.map_err(|error| error.to_string())
    });
    let text = text.map_err(|cause| Error::Config {
        field: "dump-config".into(),
        value: "true".to_owned(),
        cause,
        cure: "TOML holds paths in UTF-8 only; give others on the command line".to_owned(),
    })?;
    super::files::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The table that a file has.
fn table(config: &Config) -> Result<Value, String> {
    let mut table = serde_json::to_value(&config.vm).map_err(|error| error.to_string())?;
    if let Some(table) = table.as_object_mut() {
        for key in OWN_KEYS {
            table.remove(key);
        }
        for (key, target) in config.consoles() {
            let text = match target {
                ConsoleTarget::File(path) => format!("file={}", text_of(path)?),
                other => other.to_string(),
            };
            table.insert(key.to_owned(), text.into());
        }
        if let Some(path) = &config.control {
            table.insert("control".to_owned(), text_of(path)?.into());
        }
        let sandbox = &config.sandbox;
        table.insert("sandbox".to_owned(), sandbox.mode().to_string().into());
        if let Some(cgroup) = &sandbox.cgroup {
            text_of(&cgroup.path)?;
            table.insert("cgroup".to_owned(), cgroup.to_string().into());
        }
        for (key, id) in [("uid", sandbox.uid), ("gid", sandbox.gid)] {
            table.insert(key.to_owned(), id.into());
        }
    }
    without_nulls(&mut table);
    Ok(table)
}

fn text_of(path: &Path) -> Result<&str, String> {
    let text = path.to_str();
    text.ok_or_else(|| "path contains invalid UTF-8 characters".to_owned())
}

/// What is not said does not stand in a file.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(entries) => {
            entries.retain(|_, value| !value.is_null());
            entries.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

fn refuse(path: &Path, cause: impl Into<String>, cure: &str) -> Error {
    Error::Config {
        field: "config".into(),
        value: path.display().to_string(),
        cause: cause.into(),
        cure: cure.to_owned(),
    }
}

impl File {
    /// The path and the place of a value, if the file has it: what an error of it begins with.
    pub(super) fn place_of(&self, path: &ConfigPath) -> Option<String> {
        let (line, column) = self.seek(Seek::value(&steps(path.as_str())))?;
        let file = self.path.display();
        Some(format!("--config={file}: line {line}, column {column}"))
    }

    fn config(&self) -> Result<Config, Error> {
        let mut table = match self.parse()? {
            Value::Object(table) => table,
            other => {
                let found = match other {
                    Value::Array(_) => "a list".to_owned(),
                    other => other.to_string(),
                };
                let said = format!("it is a table, not {found}");
                return Err(self.failed(Some((1, 1)), &ValuePath::default(), &said));
            }
        };
        Ok(Config {
            serial: self.take(&mut table, "serial")?,
            console: self.take(&mut table, "console")?,
            control: self.take(&mut table, "control")?,
            sandbox: SandboxArgs {
                sandbox: self.take(&mut table, "sandbox")?,
                cgroup: self.take(&mut table, "cgroup")?,
                uid: self.take(&mut table, "uid")?,
                gid: self.take(&mut table, "gid")?,
            },
            vm: self.read(table.into(), None)?,
        })
    }

    /// The value of one of this program's own keys.
    fn take<T: DeserializeOwned>(
        &self,
        table: &mut Map<String, Value>,
        key: &'static str,
    ) -> Result<Option<T>, Error> {
        let value = table.remove(key).filter(|value| !value.is_null());
        let read = |value| self.read(value, Some(key));
        value.map(read).transpose()
    }

    /// Reads a value, which stands behind `key`.
    fn read<T: DeserializeOwned>(
        &self,
        value: Value,
        key: Option<&'static str>,
    ) -> Result<T, Error> {
        read_value(value).map_err(
            |ReadError {
                 path: ValuePath(rest),
                 message,
                 ..
             }| {
                let key = key.map(|key| Step::Key(key.to_owned()));
                let path = ValuePath(key.into_iter().chain(rest).collect());
                let is_key = message.starts_with("unknown field ");
                let seek = if is_key {
                    Seek::key(&path.0)
                } else {
                    Seek::value(&path.0)
                };
                let place = self.seek(seek);
                self.failed(place, &path, &said(&message, path.0.len() == 1))
            },
        )
    }

    /// The line and the column of what is looked for.
    fn seek(&self, seek: Seek<'_>) -> Option<(usize, usize)> {
        match self.format {
            Format::Toml => {
                let parser = toml::Deserializer::parse(&self.text).ok()?;
                let found = seek.deserialize(parser).err()?;
                self.toml_place(&found)
            }
            Format::Json => {
                let mut parser = serde_json::Deserializer::from_str(&self.text);
                let found = seek.deserialize(&mut parser).err()?;
                Some(json_place(&found))
            }
        }
    }

    fn toml_place(&self, error: &toml::de::Error) -> Option<(usize, usize)> {
        let before = self.text.get(..error.span()?.start)?;
        let line = before.rsplit('\n').next().unwrap_or_default();
        Some((before.matches('\n').count() + 1, line.chars().count() + 1))
    }

    /// The text as values.
    fn parse(&self) -> Result<Value, Error> {
        match self.format {
            Format::Toml => {
                let failed = |path: &ValuePath, error: &toml::de::Error| {
                    let place = self.toml_place(error);
                    self.failed(place, path, in_toml(error.message()))
                };
                let parser = toml::Deserializer::parse(&self.text).map_err(|error| {
                    let place = error.span().map(|span| span.start);
                    let key = place.and_then(|place| toml_key(&self.text, place));
                    let path = steps(&key.unwrap_or_default());
                    failed(&ValuePath(path), &error)
                })?;
                read_unique(parser).map_err(|(path, error)| failed(&path, &error))
            }
            Format::Json => {
                let failed = |path: &ValuePath, error: &serde_json::Error| {
                    let text = error.to_string();
                    // The place, once more.
                    let message = text
                        .rsplit_once(" at line ")
                        .map_or(&*text, |(text, _)| text);
                    self.failed(Some(json_place(error)), path, &said(message, false))
                };
                let mut parser = serde_json::Deserializer::from_str(&self.text);
                let found =
                    read_unique(&mut parser).map_err(|(path, error)| failed(&path, &error))?;
                let end = parser.end();
                end.map_err(|error| failed(&ValuePath::default(), &error))?;
                Ok(found)
            }
        }
    }

    /// `place` is a line and a column.
    fn failed(&self, place: Option<(usize, usize)>, path: &ValuePath, said: &str) -> Error {
        let place = place
            .map(|(line, column)| format!("line {line}, column {column}: "))
            .unwrap_or_default();
        let key = match path.to_string() {
            path if path.is_empty() => path,
            path => format!("{path}: "),
        };
        refuse(&self.path, format!("{place}{key}{said}"), CURE)
    }
}

/// At the very beginning the parser counts no column.
fn json_place(error: &serde_json::Error) -> (usize, usize) {
    (error.line(), error.column().max(1))
}

/// What the parser says of a text that is no TOML, where it could be misunderstood.
fn in_toml(message: &str) -> &str {
    match message.trim() {
        "string values must be quoted, expected literal string" => {
            "no value of TOML: a text stands in quotes, a number has digits only"
        }
        other => other,
    }
}

/// What serde says. `of_vm`: of a key beside those of this program.
fn said(message: &str, of_vm: bool) -> String {
    let message = message.trim();
    if !message.starts_with("unknown field ") {
        return in_plain_words(message, "key");
    }
    let own = if of_vm { OWN_KEYS.as_slice() } else { &[] };
    let named = message.split('`').skip(1).step_by(2);
    with_nearest(named.chain(own.iter().copied().filter(|key| *key != "console")))
}

/// serde names every key there is, after the one that is none; the one that was probably meant is enough.
fn with_nearest<'a>(mut names: impl Iterator<Item = &'a str>) -> String {
    let unknown = names.next().unwrap_or_default();
    let known: Vec<&str> = names.collect();
    let nearest = known
        .iter()
        .map(|name| (strsim::jaro(unknown, name), name))
        .filter(|(alike, _)| *alike > ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    match nearest {
        Some((_, name)) => format!("unknown key; did you mean `{name}`?"),
        None => format!("unknown key; there are {}", known.join(", ")),
    }
}
