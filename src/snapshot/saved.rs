//! What a saved machine is, as data; how its sections are read and written.

use arch::{DevicePlan, MachinePlan, Space, VirtioKind};
use devices::state::DeviceState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::file::{self, Section};
use super::memory::MemoryLayout;
use crate::devices::registry::SavedVirtio;
use crate::{ReadError, VmConfig, read_unique, read_value};

/// The version of every section.
const VERSION: u32 = 1;
/// The most of a machine that can be saved: the platform's devices, and those of an embedder.
const MOST_DEVICES: usize = 256;
const MOST_REGIONS: usize = 16;
/// The longest sections in bytes, that of the vCPUs for each of them: as values they take many times as much memory.
const LONGEST: usize = 1 << 20;
pub(crate) const LONGEST_VCPU: usize = 64 << 10;

/// All of a machine but the content of its RAM. What only its platform can read are the bytes of a section.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) about: About,
    pub(crate) plan: MachinePlan,
    pub(crate) config: VmConfig,
    pub(crate) memory: MemoryLayout,
    pub(crate) devices: Vec<SavedDevice>,
    pub(crate) virtio: Vec<SavedVirtio>,
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

/// The sections, in the order in which they are written.
const SECTIONS: [&str; 10] = [
    "about", "plan", "config", "memory", "devices", "virtio", "promise", "vcpus", "chip", "clock",
];

/// The id and the kind of a virtio device.
fn virtio(device: &DevicePlan) -> Option<(&str, VirtioKind)> {
    Some((
        device.id.as_deref().unwrap_or_default(),
        device.kind.virtio()?,
    ))
}

impl Parts {
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let parts = [
            to_bytes(&self.about)?,
            to_bytes(&self.plan)?,
            to_bytes(&self.config)?,
            to_bytes(&self.memory)?,
            to_bytes(&self.devices)?,
            to_bytes(&self.virtio)?,
            self.promise.clone(),
            self.vcpus.clone(),
            self.chip.clone(),
            self.clock.clone(),
        ];
        let sections: Vec<_> = SECTIONS
            .iter()
            .zip(&parts)
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
        if let Some(unknown) = sections.iter().find(|part| !SECTIONS.contains(&part.name)) {
            let name = unknown.name.escape_debug();
            return Err(format!(
                "it has a section {name}, which this version does not know"
            ));
        }
        let bytes = |name: &str| {
            let found = sections.iter().find(|part| part.name == name);
            let found = found.ok_or_else(|| format!("it has no section {name}"))?;
            match found.version {
                VERSION if found.bytes.len() > LONGEST && name != "vcpus" => {
                    Err(format!("its section {name} is too long"))
                }
                VERSION => Ok(found.bytes),
                other => Err(format!(
                    "its section {name} has version {other}, and this program knows {VERSION}"
                )),
            }
        };
        let [
            about,
            plan,
            config,
            memory,
            devices,
            virtio,
            promise,
            vcpus,
            chip,
            clock,
        ] = SECTIONS;
        let parts = Self {
            about: from_bytes(about, bytes(about)?)?,
            plan: from_bytes(plan, bytes(plan)?)?,
            config: self::config(bytes(config)?)?,
            memory: from_bytes(memory, bytes(memory)?)?,
            devices: from_bytes(devices, bytes(devices)?)?,
            virtio: from_bytes(virtio, bytes(virtio)?)?,
            promise: bytes(promise)?.to_vec(),
            vcpus: bytes(vcpus)?.to_vec(),
            chip: bytes(chip)?.to_vec(),
            clock: bytes(clock)?.to_vec(),
        };
        parts.check()?;
        Ok(parts)
    }

    /// The plan and the configuration are of one machine, so that what is checked of the one holds for the other; and
    /// nothing that a file names is opened for it.
    fn check(&self) -> Result<(), String> {
        let Self { plan, config, .. } = self;
        if config.kernel.is_some() || config.initrd.is_some() {
            return Err("it names files that a restored machine has not".to_owned());
        }
        if plan.devices.len().max(self.devices.len()) > MOST_DEVICES
            || plan.ram.len() > MOST_REGIONS
        {
            return Err("it has more devices or regions of memory than a machine".to_owned());
        }
        self.memory.check(plan)?;
        if plan.vmgenid.is_some_and(|id| !id.is_in_ram_of(plan)) {
            return Err("its generation ID is not in its memory".to_owned());
        }
        if plan.ram_size() != config.guest_memory.bytes() || plan.vcpus != config.vcpus {
            return Err("its machine is not that of its configuration".to_owned());
        }
        // What is opened for a device is what its configuration shows.
        let named = config.named_devices();
        let named = named.iter().map(|device| (&*device.id, device.kind));
        if plan.devices.iter().filter_map(virtio).eq(named) {
            Ok(())
        } else {
            Err("its virtio devices are not those of its configuration".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use arch::{AddressRange, DeviceKind, GenerationId};
    use devices::config::BlkConfig;

    use super::*;

    fn parts() -> Parts {
        let plan = MachinePlan {
            arch: "test".into(),
            ram: vec![AddressRange::new(0, 32 << 20)],
            reserved: Vec::new(),
            kernel_window: AddressRange::new(0, 32 << 20),
            mmio_window: AddressRange::new(1 << 40, 1 << 20),
            devices: Vec::new(),
            pci: None,
            vcpus: 1,
            lean: None,
            cmdline: String::new(),
            vmgenid: None,
            remarks: Vec::new(),
        };
        Parts {
            about: About {
                version: "1".to_owned(),
                saved_ms: 2,
            },
            memory: MemoryLayout::of(&plan, "memory"),
            plan,
            config: VmConfig::default().with_memory_mib(32).without_rng(),
            devices: Vec::new(),
            virtio: Vec::new(),
            promise: b"{}".to_vec(),
            vcpus: b"[]".to_vec(),
            chip: b"{}".to_vec(),
            clock: b"{}".to_vec(),
        }
    }

    fn read(change: impl FnOnce(&mut Parts)) -> Result<Parts, String> {
        let mut parts = parts();
        change(&mut parts);
        Parts::from_bytes(&parts.to_bytes()?)
    }

    #[test]
    fn a_state_comes_back_as_it_was() {
        let again = read(|_| ());
        let again = again.map(|again| (again.about, again.plan, again.config, again.vcpus));
        let Parts {
            about,
            plan,
            config,
            vcpus,
            ..
        } = parts();
        assert_eq!(again, Ok((about, plan, config, vcpus)));
    }

    /// The configuration is checked against the host, and the plan is what is made.
    #[test]
    fn r29_a_machine_that_is_not_that_of_its_configuration_is_refused() {
        let far = AddressRange::new(1 << 50, 1 << 50);
        let wrong: [fn(&mut Parts); 7] = [
            |parts| parts.config.vcpus = 2,
            |parts| parts.plan.vcpus = u32::MAX,
            |parts| parts.plan.ram.push(AddressRange::new(1 << 50, 1 << 50)),
            |parts| parts.memory.regions.clear(),
            |parts| parts.memory.file = "../memory".to_owned(),
            |parts| {
                parts.plan.ram = vec![AddressRange::new(0, u64::MAX - 4095); 2];
                parts.memory.regions = parts.plan.ram.clone();
            },
            |parts| {
                parts.plan.ram = vec![AddressRange::new(1, 32 << 20)];
                parts.memory.regions = parts.plan.ram.clone();
            },
        ];
        for (number, change) in wrong.into_iter().enumerate() {
            assert!(read(change).is_err(), "{number}");
        }
        let both = read(|parts| {
            parts.plan.ram.push(far);
            parts.memory.regions.push(far);
        });
        assert!(both.is_err_and(|cause| cause.contains("of its configuration")));
    }

    #[test]
    fn a_generation_id_that_is_not_in_memory_is_refused() {
        let with = |base, len| {
            read(|parts| {
                parts.plan.vmgenid = Some(GenerationId {
                    range: AddressRange::new(base, len),
                    irq: None,
                });
            })
        };
        assert!(with((32 << 20) - 16, 16).is_ok());
        for (base, len) in [
            ((32 << 20) - 15, 16),
            (u64::MAX - 8, 16),
            (0x1000, 15),
            (0x1000, u64::MAX),
        ] {
            let refused = with(base, len).err().unwrap_or_default();
            assert!(refused.contains("generation ID"), "{base:#x}: {refused}");
        }
    }

    #[test]
    fn r48_nothing_that_a_state_names_is_opened() {
        let disk = |parts: &mut Parts| parts.config.blk = vec![BlkConfig::new("/dev/sda")];
        let device = |parts: &mut Parts| {
            parts.plan.devices.push(DevicePlan {
                kind: DeviceKind::VirtioMmio(VirtioKind::Block),
                id: Some("blk0".to_owned()),
                space: Space::Mmio,
                range: AddressRange::new(1 << 40, 4096),
                irq: None,
                messages: None,
            });
        };
        for refused in [read(disk), read(device)] {
            assert!(refused.is_err_and(|cause| cause.contains("not those of its configuration")));
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let state = parts().to_bytes().unwrap_or_default();
        let sections = file::decode(&state).unwrap_or_default();
        let said = |sections: &[Section<'_>]| {
            let read = Parts::from_bytes(&file::encode(sections));
            read.err().unwrap_or_default()
        };
        let mut changed = sections.clone();
        changed.push(Section {
            name: "colour",
            version: 1,
            bytes: b"1",
        });
        assert!(said(&changed).contains("a section colour"));
        let mut changed = sections.clone();
        changed.retain(|section| section.name != "chip");
        assert!(said(&changed).contains("no section chip"));
        for (version, bytes, cause) in [
            (2, &b"{}"[..], "its section plan has version 2"),
            (1, b"{", "the section plan is no JSON"),
            (
                1,
                br#"{"a":1,"a":1}"#,
                "the section plan is no JSON: duplicate",
            ),
            (1, br#"{"arch":1}"#, "the section plan: "),
        ] {
            let mut changed = sections.clone();
            let plan = changed.iter_mut().find(|section| section.name == "plan");
            if let Some(plan) = plan {
                *plan = Section {
                    name: "plan",
                    version,
                    bytes,
                };
            }
            assert!(said(&changed).contains(cause), "{}", said(&changed));
        }
    }
}
