//! Configuration files, in a build that reads none.

use std::path::Path;
use std::process::ExitCode;

use vmm_reference::{ConfigPath, Error};

use super::config::Config;

/// There is none.
pub(super) enum File {}

impl File {
    pub(super) fn place_of(&self, _: &ConfigPath) -> Option<String> {
        match *self {}
    }
}

/// Never called: there is no option for a file.
pub(super) fn read(_: &Path) -> Result<(Config, File), Error> {
    Err(Error::Config {
        field: "config".into(),
        value: String::new(),
        cause: "this build reads no configuration files".to_owned(),
        cure: "build with the feature config-file".to_owned(),
    })
}

/// Likewise.
pub(super) fn dump(_: &Config) -> Result<ExitCode, Error> {
    Ok(ExitCode::SUCCESS)
}
