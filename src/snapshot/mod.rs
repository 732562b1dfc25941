//! Saved machines: a state, which is small and checked as a whole, and beside it the content of RAM, in one file or in a
//! chain of them.

pub(crate) mod chain;
mod changes;
mod clock;
pub(crate) mod disk;
mod file;
pub(crate) mod handler;
pub(crate) mod layout;
pub(crate) mod load;
pub(crate) mod memory;
mod memory_source;
mod merge;
pub(crate) mod platform;
mod present;
pub(crate) mod progress;
mod ranges;
mod replace;
pub(crate) mod save;
pub(crate) mod saved;
mod saved_memory;
pub(crate) mod saving;
mod sparse;

use std::fs::File;
use std::io::Read;

use arch::MachinePlan;

pub use self::clock::RestoredClock;
use self::saved::{MAX_STATE, Parts};
pub use self::saved_memory::SavedMemory;
use crate::{Error, HugePages, VmConfig};

/// A saved machine's state, read and checked as far as that needs no platform.
#[derive(Debug)]
pub struct Snapshot {
    pub(crate) parts: Parts,
    /// What it is in messages.
    name: String,
    clock: RestoredClock,
}

impl Snapshot {
    /// The version of the format in which this program writes states. All that it reads are of this one.
    pub const FORMAT_VERSION: u32 = file::VERSION;

    /// Reads a state; `name` is what it is called in messages.
    ///
    /// # Errors
    /// When it is none, is damaged, or is of a version that this one does not know.
    pub fn read(name: impl Into<String>, state: File) -> Result<Self, Error> {
        let name = name.into();
        let mut bytes = Vec::new();
        let read = state.take(MAX_STATE as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|source| Error::Refused {
            field: "snapshot".into(),
            value: name.clone(),
            source,
            cure: "name the state of a saved machine".to_owned(),
        })?;
        if bytes.len() > MAX_STATE {
            return Err(refuse(
                &name,
                format!("it has more than {} MiB", MAX_STATE >> 20),
            ));
        }
        match Parts::from_bytes(&bytes) {
            Ok(parts) => Ok(Self {
                parts,
                name,
                clock: RestoredClock::default(),
            }),
            Err(cause) => Err(refuse(&name, cause)),
        }
    }

    /// One that was not read.
    pub(crate) fn of(parts: Parts, name: &str) -> Self {
        Self {
            parts,
            name: name.to_owned(),
            clock: RestoredClock::default(),
        }
    }

    /// The names of the files with the content of RAM, beside the state: one that has all of it, then those with what
    /// changed since the one before.
    #[must_use]
    pub fn memory_files(&self) -> Vec<&str> {
        let layers = self.parts.memory.layers.iter();
        layers.map(|layer| &*layer.file).collect()
    }

    /// What no other saved machine has: 32 random digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.parts.about.id
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

    /// What whoever had it saved has to say to whoever restores it: the `note` of
    /// [`Command::Snapshot`](crate::Command::Snapshot).
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.parts.note.as_deref()
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

    /// All of the state, section by section: a name, and JSON. It is for people who look for something; what is in a
    /// section may be another thing with each version (docs/snapshot.md).
    ///
    /// # Errors
    /// When a section cannot be written.
    pub fn sections(&self) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
        self.parts.sections().map_err(|cause| self.refuse(cause))
    }

    /// What time the guest finds when it goes on.
    pub fn set_clock(&mut self, clock: RestoredClock) {
        self.clock = clock;
    }

    /// The pages that guest RAM is to be made of, instead of those that it was made of. With other ones than
    /// [`HugePages::Off`] the content of files is read before the guest goes on.
    pub fn set_huge_pages(&mut self, pages: HugePages) {
        self.parts.config.huge_pages = pages;
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
