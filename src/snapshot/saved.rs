//! What a saved machine is, as data; how its sections are read and written.

use arch::{MachinePlan, Space};
use devices::state::DeviceState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::file::{self, Section};
use super::memory::MemoryLayout;
use crate::{ReadError, VmConfig, read_unique, read_value};

/// The version of every section.
const VERSION: u32 = 1;

/// All of a machine but the content of its RAM. What only its platform can read are the bytes of a section.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) about: About,
    pub(crate) plan: MachinePlan,
    pub(crate) config: VmConfig,
    pub(crate) memory: MemoryLayout,
    pub(crate) devices: Vec<SavedDevice>,
    pub(crate) promise: Vec<u8>,
    pub(crate) vcpus: Vec<u8>,
    pub(crate) chip: Vec<u8>,
    pub(crate) clock: Vec<u8>,
}

/// Where a state is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    /// The program's version.
    pub(crate) version: String,
    /// Milliseconds since 1970.
    pub(crate) saved_ms: u64,
}

/// A device on the bus, by its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedDevice {
    pub(crate) space: Space,
    pub(crate) base: u64,
    pub(crate) state: DeviceState,
}

/// A value as a section's bytes.
pub(crate) fn to_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    serde_json::to_vec(value).map_err(|error| error.to_string())
}

/// And back.
pub(crate) fn from_bytes<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, String> {
    let value = value(name, bytes)?;
    serde_json::from_value(value).map_err(|error| format!("the section {name}: {error}"))
}

/// A section as a plain value, as all that is read here is at first: a type has code for one kind of source.
fn value(name: &str, bytes: &[u8]) -> Result<Value, String> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = read_unique(&mut json).map_err(|(_, error)| error);
    value
        .and_then(|value| json.end().map(|()| value))
        .map_err(|error| format!("the section {name} is no JSON: {error}"))
}

/// The configuration has names for people, and is read as where people write it.
fn config(bytes: &[u8]) -> Result<VmConfig, String> {
    read_value(value("config", bytes)?).map_err(|error| {
        let ReadError { path, message, .. } = error;
        format!("the section config: {path}: {message}")
    })
}

impl Parts {
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let parts = [
            ("about", to_bytes(&self.about)?),
            ("plan", to_bytes(&self.plan)?),
            ("config", to_bytes(&self.config)?),
            ("memory", to_bytes(&self.memory)?),
            ("devices", to_bytes(&self.devices)?),
            ("promise", self.promise.clone()),
            ("vcpus", self.vcpus.clone()),
            ("chip", self.chip.clone()),
            ("clock", self.clock.clone()),
        ];
        let sections: Vec<_> = parts
            .iter()
            .map(|(name, bytes)| Section {
                name,
                version: VERSION,
                bytes,
            })
            .collect();
        Ok(file::encode(&sections))
    }

    pub(crate) fn from_bytes(state: &[u8]) -> Result<Self, String> {
        let sections = file::decode(state).map_err(|error| error.to_string())?;
        let known = [
            "about", "plan", "config", "memory", "devices", "promise", "vcpus", "chip", "clock",
        ];
        if let Some(unknown) = sections.iter().find(|part| !known.contains(&part.name)) {
            let name = unknown.name.escape_debug();
            return Err(format!(
                "it has a section {name}, which this version does not know"
            ));
        }
        let bytes = |name: &str| {
            let found = sections.iter().find(|part| part.name == name);
            let found = found.ok_or_else(|| format!("it has no section {name}"))?;
            match found.version {
                VERSION => Ok(found.bytes),
                other => Err(format!(
                    "its section {name} has version {other}, and this program knows {VERSION}"
                )),
            }
        };
        let parts = Self {
            about: from_bytes("about", bytes("about")?)?,
            plan: from_bytes("plan", bytes("plan")?)?,
            config: config(bytes("config")?)?,
            memory: from_bytes("memory", bytes("memory")?)?,
            devices: from_bytes("devices", bytes("devices")?)?,
            promise: bytes("promise")?.to_vec(),
            vcpus: bytes("vcpus")?.to_vec(),
            chip: bytes("chip")?.to_vec(),
            clock: bytes("clock")?.to_vec(),
        };
        parts.memory.check(&parts.plan)?;
        Ok(parts)
    }
}
