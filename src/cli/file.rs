//! Configuration files: TOML and JSON, with the keys of `VmConfig`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::de::{DeserializeOwned, DeserializeSeed, IgnoredAny};
use serde_path_to_error::{Path as Keys, Segment};
use vmm_reference::{ConfigPath, Error, VmConfig, in_plain_words};

use super::files::read_text;
use super::locate::{Part, Seek, parts, toml_key};

const CURE: &str = "see docs/configuration.md, or --dump-config for a file that is right";
/// How alike a key has to be to what was written.
const ALIKE: f64 = 0.7;

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
pub(super) fn read(path: &Path) -> Result<(VmConfig, File), Error> {
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
    // A table and nothing else. What is none at all is said with its key by the second look.
    let table: Result<BTreeMap<String, IgnoredAny>, Error> = file.parse();
    if let (Err(error), true) = (table, file.is_well_formed()) {
        return Err(error);
    }
    Ok((file.parse()?, file))
}

/// Prints a configuration that can be used, as TOML.
pub(super) fn dump(config: &VmConfig) -> Result<ExitCode, Error> {
    config.machine()?;
    let text = toml::to_string(config).map_err(|error| Error::Config {
        field: "dump-config".into(),
        value: "true".to_owned(),
        cause: error.to_string(),
        cure: "TOML holds paths in UTF-8 only; give others on the command line".to_owned(),
    })?;
    super::files::print(&text)?;
    Ok(ExitCode::SUCCESS)
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
        let (line, column) = self.seek(&parts(path))?;
        let file = self.path.display();
        Some(format!("--config={file}: line {line}, column {column}"))
    }

    /// Whether the file has this key.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.seek(&parts(&key.into())).is_some()
    }

    /// The line and the column of a value.
    fn seek(&self, path: &[Part]) -> Option<(usize, usize)> {
        match self.format {
            Format::Toml => {
                let parser = toml::Deserializer::parse(&self.text).ok()?;
                let found = Seek(path).deserialize(parser).err()?;
                self.toml_place(&found)
            }
            Format::Json => {
                let mut parser = serde_json::Deserializer::from_str(&self.text);
                let found = Seek(path).deserialize(&mut parser).err()?;
                Some(json_place(&found))
            }
        }
    }

    fn is_well_formed(&self) -> bool {
        match self.format {
            Format::Toml => toml::Deserializer::parse(&self.text).is_ok(),
            Format::Json => serde_json::from_str::<IgnoredAny>(&self.text).is_ok(),
        }
    }

    fn toml_place(&self, error: &toml::de::Error) -> Option<(usize, usize)> {
        let before = self.text.get(..error.span()?.start)?;
        let line = before.rsplit('\n').next().unwrap_or_default();
        Some((before.matches('\n').count() + 1, line.chars().count() + 1))
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        match self.format {
            Format::Toml => {
                let failed = |key: Option<String>, error: &toml::de::Error, words: &str| {
                    self.failed(self.toml_place(error), key, words)
                };
                let parser = toml::Deserializer::parse(&self.text);
                let parser = parser.map_err(|error| {
                    let place = error.span().map(|span| span.start);
                    let key = place.and_then(|place| toml_key(&self.text, place));
                    failed(key, &error, in_toml(error.message()))
                })?;
                serde_path_to_error::deserialize(parser).map_err(|error| {
                    failed(
                        known(error.path()),
                        error.inner(),
                        &said(error.inner().message()),
                    )
                })
            }
            Format::Json => {
                let failed = |key: Option<String>, error: &serde_json::Error| {
                    let text = error.to_string();
                    // The place, once more.
                    let message = text
                        .rsplit_once(" at line ")
                        .map_or(&*text, |(text, _)| text);
                    self.failed(Some(json_place(error)), key, &said(message))
                };
                let mut parser = serde_json::Deserializer::from_str(&self.text);
                let found = serde_path_to_error::deserialize(&mut parser)
                    .map_err(|error| failed(known(error.path()), error.inner()))?;
                parser.end().map_err(|error| failed(None, &error))?;
                Ok(found)
            }
        }
    }

    /// `place` is a line and a column.
    fn failed(&self, place: Option<(usize, usize)>, key: Option<String>, said: &str) -> Error {
        let place = place
            .map(|(line, column)| format!("line {line}, column {column}: "))
            .unwrap_or_default();
        let key = key.map(|key| format!("{key}: ")).unwrap_or_default();
        refuse(&self.path, format!("{place}{key}{said}"), CURE)
    }
}

/// At the very beginning the parser counts no column.
fn json_place(error: &serde_json::Error) -> (usize, usize) {
    (error.line(), error.column().max(1))
}

/// The part of a value's path that is known, if there is one.
fn known(keys: &Keys) -> Option<String> {
    let mut path = String::new();
    for segment in keys.iter() {
        match segment {
            // What a date is made of is no key.
            Segment::Map { key } if key.starts_with("$__toml") => break,
            Segment::Map { key } | Segment::Enum { variant: key } => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
            }
            Segment::Seq { index } => path += &format!("[{index}]"),
            Segment::Unknown => break,
        }
    }
    Some(path).filter(|path| !path.is_empty())
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

/// What the parser says. Of all the keys there are, the one that was probably meant is enough.
fn said(message: &str) -> String {
    let message = message.trim();
    match message.strip_prefix("unknown field ") {
        Some(_) if !message.contains("$__toml") => {
            with_nearest(message.split('`').skip(1).step_by(2))
        }
        _ => in_plain_words(message, "key"),
    }
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
