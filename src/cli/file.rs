//! Configuration files: TOML and JSON, with the keys of `VmConfig`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use serde::de::{DeserializeOwned, IgnoredAny};
use vmm_reference::{Error, VmConfig, in_plain_words};

use super::files::read_text;

const CURE: &str = "see docs/configuration.md, or --dump-config for a file that is right";
/// How alike a key has to be to what was written.
const ALIKE: f64 = 0.7;

/// A file's text and the parser that its name asks for.
struct File<'a> {
    path: &'a Path,
    text: String,
    format: Format,
}

#[derive(Clone, Copy)]
enum Format {
    Toml,
    Json,
}

/// Reads a configuration; also says whether it names the serial console.
pub(super) fn read(path: &Path) -> Result<(VmConfig, bool), Error> {
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
    let file = File { path, text, format };
    // A table and nothing else.
    let keys: BTreeMap<String, IgnoredAny> = file.parse()?;
    let named = keys.contains_key("serial");
    Ok((file.parse()?, named))
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

impl File<'_> {
    fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        match self.format {
            Format::Toml => {
                let failed = |path: Option<String>, error: &toml::de::Error| {
                    let start = error.span().map(|span| span.start);
                    let before = start.and_then(|start| self.text.get(..start));
                    let place = before.map(|text| {
                        let line = text.rsplit('\n').next().unwrap_or_default();
                        (text.matches('\n').count() + 1, line.chars().count() + 1)
                    });
                    self.failed(place, path, error.message())
                };
                let parser = toml::Deserializer::parse(&self.text);
                let parser = parser.map_err(|error| failed(None, &error))?;
                serde_path_to_error::deserialize(parser)
                    .map_err(|error| failed(Some(error.path().to_string()), error.inner()))
            }
            Format::Json => {
                let failed = |path: Option<String>, error: &serde_json::Error| {
                    let text = error.to_string();
                    // The place, once more.
                    let message = text
                        .rsplit_once(" at line ")
                        .map_or(&*text, |(text, _)| text);
                    // At the very beginning it counts no column.
                    self.failed(Some((error.line(), error.column().max(1))), path, message)
                };
                let mut parser = serde_json::Deserializer::from_str(&self.text);
                let found = serde_path_to_error::deserialize(&mut parser)
                    .map_err(|error| failed(Some(error.path().to_string()), error.inner()))?;
                parser.end().map_err(|error| failed(None, &error))?;
                Ok(found)
            }
        }
    }

    /// `place` is a line and a column.
    fn failed(&self, place: Option<(usize, usize)>, path: Option<String>, message: &str) -> Error {
        let place = place
            .map(|(line, column)| format!("line {line}, column {column}: "))
            .unwrap_or_default();
        // What a date is made of is no key.
        let key = path
            .map(|path| path.split(".$__toml").next().unwrap_or_default().to_owned())
            .filter(|path| !path.is_empty() && path != ".")
            .map(|path| format!("{path}: "))
            .unwrap_or_default();
        refuse(
            self.path,
            format!("{place}{key}{}", said(message.trim())),
            CURE,
        )
    }
}

/// What the parser says. Of all the keys there are, the one that was probably meant is enough.
fn said(message: &str) -> String {
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
