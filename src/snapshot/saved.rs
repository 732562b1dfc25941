//! What a saved machine is, as data; how its sections are read and written.

#[cfg(feature = "virtio")]
use std::path::Path;

use arch::{DevicePlan, MachinePlan, Space, VirtioKind};
use devices::state::DeviceState;
#[cfg(feature = "virtio")]
use devices::state::VirtioDeviceState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::file::{self, Section};
use super::layout::MemoryLayout;
use crate::config::read_json;
use crate::devices::registry::SavedVirtio;
use crate::{ReadError, VmConfig, read_value};

/// The version of every section.
const VERSION: u32 = 1;
/// The most of a machine that can be saved: the platform's devices, and those of an embedder.
const MOST_DEVICES: usize = 256;
const MOST_REGIONS: usize = 16;
/// The longest sections in bytes, that of the vCPUs for each of them: as values they take many times as much memory.
const LONGEST: usize = 1 << 20;
const LONGEST_VCPU: usize = 64 << 10;
/// The largest state in bytes: far more than a machine with the most vCPUs has.
pub(crate) const MAX_STATE: usize = 64 << 20;

/// All of a machine but the content of its RAM. What only its platform can read are the bytes of a section.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) about: About,
    pub(crate) plan: MachinePlan,
    pub(crate) config: VmConfig,
    pub(crate) memory: MemoryLayout,
    /// What whoever had it saved has to say.
    pub(crate) note: Option<String>,
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
    /// 32 random digits, by which other saved machines know it.
    pub(crate) id: String,
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

/// And back. Plain values in between would take as long again.
pub(crate) fn from_bytes<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("the section {name}: {error}"))
}

/// The configuration has names for people, and is read as where people write it.
fn config(bytes: &[u8]) -> Result<VmConfig, String> {
    let value = read_json(bytes).map_err(|error| format!("the section config: {error}"))?;
    read_value(value).map_err(|error| {
        let ReadError { path, message, .. } = error;
        format!("the section config: {path}: {message}")
    })
}

/// The section whose length depends on the machine.
pub(crate) const VCPUS: &str = "vcpus";
/// The sections, in the order in which they are written.
const SECTIONS: [&str; 10] = [
    "about", "plan", "config", "memory", "devices", "virtio", "promise", VCPUS, "chip", "clock",
];

/// One that there may be.
const NOTE: &str = "note";

/// The id and the kind of a virtio device.
fn virtio(device: &DevicePlan) -> Option<(&str, VirtioKind)> {
    Some((
        device.id.as_deref().unwrap_or_default(),
        device.kind.virtio()?,
    ))
}

/// Whether a section is one that is read; more vCPUs may have a longer one.
pub(crate) fn check_len(name: &str, len: usize, vcpus: u32) -> Result<(), String> {
    let most = match name {
        VCPUS => LONGEST_VCPU.saturating_mul(usize::try_from(vcpus).unwrap_or(usize::MAX)),
        _ => LONGEST,
    };
    if len > most {
        return Err(format!(
            "its section {name} has {len} bytes, and may have {most}"
        ));
    }
    Ok(())
}

impl Parts {
    /// All sections by their names, in their order; each is JSON.
    pub(crate) fn sections(&self) -> Result<Vec<(&'static str, Vec<u8>)>, String> {
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
        let mut sections: Vec<_> = SECTIONS.into_iter().zip(parts).collect();
        if let Some(note) = &self.note {
            sections.push((NOTE, to_bytes(note)?));
        }
        Ok(sections)
    }

    /// # Errors
    /// When it could not be read back.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let sections = self.sections()?;
        let sections: Vec<_> = sections
            .iter()
            .map(|(name, bytes)| Section {
                name,
                version: VERSION,
                bytes,
            })
            .collect();
        for section in &sections {
            check_len(section.name, section.bytes.len(), self.plan.vcpus)?;
        }
        let state = file::encode(&sections);
        if state.len() > MAX_STATE {
            let most = MAX_STATE >> 20;
            return Err(format!("its state has more than {most} MiB"));
        }
        Ok(state)
    }

    pub(crate) fn from_bytes(state: &[u8]) -> Result<Self, String> {
        let sections = file::decode(state).map_err(|error| error.to_string())?;
        let is_known = |name: &str| name == NOTE || SECTIONS.contains(&name);
        if let Some(unknown) = sections.iter().find(|part| !is_known(part.name)) {
            let name = unknown.name.escape_debug();
            return Err(format!(
                "it has a section {name}, which this version does not know"
            ));
        }
        let bytes = |name: &str| {
            let found = sections.iter().find(|part| part.name == name);
            let found = found.ok_or_else(|| format!("it has no section {name}"))?;
            match found.version {
                // How many vCPUs it has is not known yet.
                VERSION if name == VCPUS => Ok(found.bytes),
                VERSION => check_len(name, found.bytes.len(), 0).map(|()| found.bytes),
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
        let has_note = sections.iter().any(|part| part.name == NOTE);
        let note = has_note
            .then(|| from_bytes(NOTE, bytes(NOTE)?))
            .transpose()?;
        let parts = Self {
            note,
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

    /// The state of a disk that is there, which is another file from now on.
    #[cfg(feature = "virtio")]
    pub(crate) fn move_disk(&mut self, id: &str, path: &Path) -> Option<&mut SavedVirtio> {
        let named = self.config.named_devices();
        let found = named
            .into_iter()
            .find(|device| device.kind == VirtioKind::Block && device.id == id)?;
        self.config.blk.get_mut(found.place)?.path = path.to_owned();
        let saved = self.virtio.iter_mut().find(|saved| saved.id == id)?;
        let VirtioDeviceState::Block(disk) = &mut saved.state.device else {
            return None;
        };
        disk.name = path.to_owned();
        Some(saved)
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
        let id = &self.about.id;
        if id.len() != 32 || !id.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err("its id is none".to_owned());
        }
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
                id: "0".repeat(32),
                version: "1".to_owned(),
                saved_ms: 2,
            },
            memory: MemoryLayout::whole(&plan.ram, "memory"),
            note: Some("of \"ours\"".to_owned()),
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
            |parts| parts.memory.layers[0].file = "../memory".to_owned(),
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
            parts.memory = MemoryLayout::whole(&parts.plan.ram, "memory");
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

    /// What is saved can be read back, or is not saved.
    #[test]
    fn sections_that_are_too_long_are_refused_by_name_in_both_directions() {
        let text = |len: usize| format!("\"{}\"", "x".repeat(len - 2)).into_bytes();
        type Set = fn(&mut Parts, Vec<u8>);
        let long: [(&str, Set, usize); 3] = [
            ("chip", |parts, bytes| parts.chip = bytes, LONGEST),
            ("clock", |parts, bytes| parts.clock = bytes, LONGEST),
            ("vcpus", |parts, bytes| parts.vcpus = bytes, LONGEST_VCPU),
        ];
        for (name, set, most) in long {
            let mut parts = parts();
            set(&mut parts, text(most));
            assert!(parts.to_bytes().is_ok(), "{name}");
            set(&mut parts, text(most + 1));
            let refused = parts.to_bytes().err().unwrap_or_default();
            let said = format!(
                "its section {name} has {} bytes, and may have {most}",
                most + 1
            );
            assert_eq!(refused, said);
        }
        let read = read(|parts| parts.config.append = Some("x".repeat(LONGEST)));
        assert!(read.is_err_and(|cause| cause.starts_with("its section config has")));
        // One that somebody else has written.
        let state = parts().to_bytes().unwrap_or_default();
        let mut sections = file::decode(&state).unwrap_or_default();
        let bytes = text(LONGEST + 1);
        if let Some(chip) = sections.iter_mut().find(|section| section.name == "chip") {
            chip.bytes = &bytes;
        }
        let read = Parts::from_bytes(&file::encode(&sections));
        assert!(read.is_err_and(|cause| cause.starts_with("its section chip has")));
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
            (1, b"{", "the section plan: EOF"),
            (
                1,
                br#"{"arch":"a","arch":"a"}"#,
                "the section plan: duplicate field `arch`",
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
