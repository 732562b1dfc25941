//! Saved machines: a state, which is small and checked as a whole, and beside it the content of RAM.

mod file;
pub(crate) mod load;
mod memory;
mod present;
mod replace;
pub(crate) mod save;
mod saved;

use std::fs::File;
use std::io::Read;

use arch::MachinePlan;

use self::saved::Parts;
use crate::{Error, VmConfig};

/// The largest state that is read, in bytes: far more than a machine with the most vCPUs has.
const MAX_STATE: u64 = 64 << 20;

/// A saved machine's state, read and checked as far as that needs no platform.
#[derive(Debug)]
pub struct Snapshot {
    pub(crate) parts: Parts,
    /// What it is in messages.
    name: String,
}

impl Snapshot {
    /// Reads a state; `name` is what it is called in messages.
    ///
    /// # Errors
    /// When it is none, is damaged, or is of a version that this one does not know.
    pub fn read(name: impl Into<String>, state: File) -> Result<Self, Error> {
        let name = name.into();
        let mut bytes = Vec::new();
        let read = state.take(MAX_STATE + 1).read_to_end(&mut bytes);
        read.map_err(|source| Error::Refused {
            field: "snapshot".into(),
            value: name.clone(),
            source,
            cure: "name the state of a saved machine".to_owned(),
        })?;
        if bytes.len() as u64 > MAX_STATE {
            return Err(refuse(
                &name,
                format!("it has more than {} MiB", MAX_STATE >> 20),
            ));
        }
        match Parts::from_bytes(&bytes) {
            Ok(parts) => Ok(Self { parts, name }),
            Err(cause) => Err(refuse(&name, cause)),
        }
    }

    /// The name of the file with the content of RAM, beside the state.
    #[must_use]
    pub fn memory_file(&self) -> &str {
        &self.parts.memory.file
    }

    /// The version of the program that has saved it.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.parts.about.version
    }

    /// When it was saved, in milliseconds since 1970.
    #[must_use]
    pub fn saved_ms(&self) -> u64 {
        self.parts.about.saved_ms
    }

    /// The machine's configuration.
    #[must_use]
    pub fn config(&self) -> &VmConfig {
        &self.parts.config
    }

    /// The machine.
    #[must_use]
    pub fn plan(&self) -> &MachinePlan {
        &self.parts.plan
    }

    /// It cannot become a machine here.
    pub(crate) fn refuse(&self, cause: impl Into<String>) -> Error {
        refuse(&self.name, cause)
    }
}

fn refuse(name: &str, cause: impl Into<String>) -> Error {
    Error::Config {
        field: "snapshot".into(),
        value: name.to_owned(),
        cause: cause.into(),
        cure: "save the machine again, with this version on a host like this one".to_owned(),
    }
}
