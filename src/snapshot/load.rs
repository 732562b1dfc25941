//! Makes a new machine, whose guest has not run yet, what a saved one was.

use std::fs::File;
use std::io;

use arch::{KvmError, KvmPlatform, MachinePlan, Space};
use devices::state::StateError;

use super::saved::{LONGEST_VCPU, from_bytes};
use super::{Snapshot, memory};
use crate::Error;
use crate::devices::registry::NotLoaded;
use crate::memory::Backing;
use crate::vm::dispatch::IoSpaces;
use crate::vm::empty::Empty;

fn wrong_memory(snapshot: &Snapshot, source: io::Error) -> Error {
    Error::Refused {
        field: "snapshot".into(),
        value: snapshot.parts.memory.file.clone(),
        source,
        cure: "restore with the file of memory that was saved with the state".to_owned(),
    }
}

/// A saved machine, for a platform that can read all of it.
pub(crate) struct Saved<P: KvmPlatform> {
    pub(crate) snapshot: Snapshot,
    /// The content of RAM.
    pub(crate) file: File,
    vcpus: Vec<P::VcpuState>,
    chip: P::ChipState,
    clock: P::ClockState,
}

impl<P: KvmPlatform> Saved<P> {
    /// Checks that the machine can go on here, before anything of it is made. The platform keeps what it was promised.
    ///
    /// # Errors
    /// Names everything that this host lacks, in one message.
    pub(crate) fn new(platform: &mut P, snapshot: Snapshot, file: File) -> Result<Self, Error> {
        let parts = &snapshot.parts;
        let refuse = |cause| snapshot.refuse(cause);
        let here = std::env::consts::ARCH;
        if parts.plan.arch != here {
            let arch = parts.plan.arch.escape_debug();
            return Err(refuse(format!(
                "it is a machine of {arch}, and this host is {here}"
            )));
        }
        // Memory may be this file: what lies beyond its end could not be read.
        let checked = memory::check_file(&parts.memory, &file);
        checked.map_err(|source| wrong_memory(&snapshot, source))?;
        let count = usize::try_from(parts.plan.vcpus).unwrap_or(usize::MAX);
        if parts.vcpus.len() > LONGEST_VCPU.saturating_mul(count) {
            return Err(refuse("its section vcpus is too long".to_owned()));
        }
        let vcpus: Vec<P::VcpuState> = from_bytes("vcpus", &parts.vcpus).map_err(refuse)?;
        if vcpus.len() != count {
            return Err(refuse("its vCPUs are not the machine's".to_owned()));
        }
        let chip = from_bytes("chip", &parts.chip).map_err(refuse)?;
        let clock = from_bytes("clock", &parts.clock).map_err(refuse)?;
        let promise = from_bytes("promise", &parts.promise).map_err(refuse)?;
        let differences = platform.keep(promise);
        if !differences.is_empty() {
            let texts: Vec<_> = differences.iter().map(ToString::to_string).collect();
            return Err(refuse(texts.join("; ")));
        }
        Ok(Self {
            snapshot,
            file,
            vcpus,
            chip,
            clock,
        })
    }

    /// The content of its RAM.
    pub(crate) fn content(&self) -> &File {
        &self.file
    }

    /// The machine.
    pub(crate) fn plan(&self) -> &MachinePlan {
        self.snapshot.plan()
    }

    /// Loads everything.
    pub(crate) fn load(&self, machine: &Empty<'_, P>) -> Result<(), Error> {
        let Empty {
            platform,
            chip,
            vm,
            vcpus,
            spaces,
            registry,
            ram,
            generation,
            ..
        } = *machine;
        let parts = &self.snapshot.parts;
        if !Backing::of(&parts.config).maps_files() {
            let read = memory::read(ram, &parts.memory, &self.file);
            read.map_err(|source| wrong_memory(&self.snapshot, source))?;
        }
        for ((id, vcpu), state) in (0..).zip(vcpus).zip(&self.vcpus) {
            let setup = platform.configure_saved(id, &parts.plan, state)?;
            let applied = platform.apply_vcpu(vm, vcpu, &setup);
            applied.map_err(|error| self.refuse(error))?;
        }
        platform.load_clock(vm, &self.clock)?;
        platform.load_chip(vm, chip, &self.chip)?;
        for (vcpu, state) in vcpus.iter().zip(&self.vcpus) {
            let loaded = platform.load_vcpu(vm, vcpu, state);
            loaded.map_err(|error| self.refuse(error))?;
        }
        self.load_devices(spaces)?;
        let loaded = registry.load(&parts.virtio);
        loaded.map_err(|not_loaded| self.refuse_device(not_loaded))?;
        // Last: its memory is here, and whoever is told of it.
        if let Some(generation) = generation {
            generation.renew(ram)?;
            generation.tell();
        }
        Ok(())
    }

    /// What the host has for a device is not what its guest knows; or its state is none.
    fn refuse_device(&self, not_loaded: NotLoaded) -> Error {
        let NotLoaded { id, kind, error } = not_loaded;
        let cure = match &error {
            StateError::Changed(_) => {
                "restore with the file as it was then, or say changed=ok for this disk: its guest may then take for its \
                 content what it remembers"
            }
            StateError::Size { .. } => {
                "restore with the file that the guest knows, or a copy of it"
            }
            StateError::Features(_) => {
                "restore with what the device had where it was saved: a network device has the features of its tap \
                 device and of the kernel"
            }
            StateError::Host => {
                "look at what it has on this host: a tap device with as many queues"
            }
            _ => {
                let cause = format!("its device {id}: {error}");
                return self.snapshot.refuse(cause);
            }
        };
        Error::Refused {
            field: kind.into(),
            value: id,
            source: io::Error::other(error),
            cure: cure.to_owned(),
        }
    }

    /// What only KVM can say of this host may be that the machine cannot go on here.
    fn refuse(&self, error: KvmError) -> Error {
        match error {
            KvmError::Differs(_) => self.snapshot.refuse(error.to_string()),
            other => other.into(),
        }
    }

    /// Every device has a state, and every state a device.
    fn load_devices(&self, spaces: &IoSpaces) -> Result<(), Error> {
        let saved = &self.snapshot.parts.devices;
        let buses = [(Space::Mmio, &spaces.mmio), (Space::Pio, &spaces.pio)];
        let count: usize = buses.iter().map(|(_, bus)| bus.entries().len()).sum();
        if count != saved.len() {
            return Err(self.snapshot.refuse("its devices are not the machine's"));
        }
        for (space, bus) in buses {
            for entry in bus.entries() {
                let mut states = saved.iter();
                let found = states.find(|saved| (saved.space, saved.base) == (space, entry.base));
                let found = found.ok_or_else(|| {
                    let place = format!("it has no device at {:#x}", entry.base);
                    self.snapshot.refuse(place)
                })?;
                entry.device.load(&found.state).map_err(|error| {
                    let cause = format!("its device at {:#x}: {error}", entry.base);
                    self.snapshot.refuse(cause)
                })?;
            }
        }
        Ok(())
    }
}
