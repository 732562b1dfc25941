//! Configuration files: TOML and JSON, with the keys of `VmConfig`.

use std::path::Path;
use std::process::ExitCode;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use vmm_reference::{Error, VmConfig};

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
    #[derive(Deserialize)]
    struct Named {
        serial: Option<IgnoredAny>,
    }
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
    let named = file.parse::<Named>()?.serial.is_some();
    Ok((file.parse()?, named))
}

/// Prints a configuration that can be used, as TOML.
pub(super) fn dump(config: &VmConfig) -> Result<ExitCode, Error> {
    config.machine()?;
    let text = toml::to_string(config).map_err(|error| Error::Config {
        field: "dump-config",
        value: "true".to_owned(),
        cause: error.to_string(),
        cure: "TOML holds paths in UTF-8 only; give others on the command line".to_owned(),
    })?;
    super::files::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn refuse(path: &Path, cause: impl Into<String>, cure: &str) -> Error {
    Error::Config {
        field: "config",
        value: path.display().to_string(),
        cause: cause.into(),
        cure: cure.to_owned(),
    }
}

impl File<'_> {
    fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let failed = |line: Option<usize>, message: &str| {
            let line = line
                .map(|line| format!("line {line}: "))
                .unwrap_or_default();
            refuse(self.path, format!("{line}{}", with_nearest(message)), CURE)
        };
        match self.format {
            Format::Toml => toml::from_str(&self.text).map_err(|error| {
                let before = error.span().and_then(|span| self.text.get(..span.start));
                let line = before.map(|text| text.matches('\n').count().saturating_add(1));
                failed(line, error.message().trim())
            }),
            Format::Json => serde_json::from_str(&self.text).map_err(|error| {
                let text = error.to_string();
                // The place, once more.
                let message = text
                    .rsplit_once(" at line ")
                    .map_or(&*text, |(text, _)| text);
                failed(Some(error.line()), message)
            }),
        }
    }
}

/// serde names every key there is; the one that was probably meant is enough.
fn with_nearest(message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field ") else {
        return message.to_owned();
    };
    let mut names = rest.split('`').skip(1).step_by(2);
    let Some(unknown) = names.next() else {
        return message.to_owned();
    };
    let known: Vec<&str> = names.collect();
    let nearest = known
        .iter()
        .map(|name| (strsim::jaro(unknown, name), name))
        .filter(|(alike, _)| *alike > ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    match nearest {
        Some((_, name)) => format!("unknown key `{unknown}`; did you mean `{name}`?"),
        None => format!("unknown key `{unknown}`; there are {}", known.join(", ")),
    }
}
