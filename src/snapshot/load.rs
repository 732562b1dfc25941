//! Makes a new machine, whose guest has not run yet, what a saved one was.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use arch::{GuestRam, KvmError, KvmPlatform, MachinePlan, Space};
use devices::state::StateError;

use super::chain::{Base, Chain, Origin};
use super::handler::Handled;
use super::memory_source::MemorySource;
use super::platform::PlatformState;
use super::saved::Parts;
use super::{RestoredClock, SavedMemory, Snapshot, clock, memory};
use crate::Error;
use crate::control::handle::VmHandle;
use crate::devices::registry::NotLoaded;
use crate::fork::report::Wait;
use crate::memory::{Backing, map_image};
use crate::vm::dispatch::IoSpaces;
use crate::vm::empty::Empty;

pub(super) fn wrong_memory(snapshot: &Snapshot, source: io::Error) -> Error {
    Error::Refused {
        field: "snapshot".into(),
        value: snapshot.name.clone(),
        source,
        cure: "restore with the files of memory that were saved with the state".to_owned(),
    }
}

/// A saved machine, for a platform that can read all of it.
pub(crate) struct Saved<P: KvmPlatform> {
    pub(crate) snapshot: Snapshot,
    memory: MemorySource,
    state: PlatformState<P>,
    /// Of a machine that this process has inherited.
    inherited: Option<Inherited>,
}

/// What such a machine has besides.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// When it stood still; its clocks have gone on since.
    pub(crate) since: Instant,
    pub(crate) chain: Chain,
    /// Threads may be there from then on.
    pub(crate) wait: Wait,
}

impl<P: KvmPlatform> Saved<P> {
    /// Checks that the machine can go on here, before anything of it is made. The platform keeps what it was promised.
    ///
    /// # Errors
    /// Names everything that this host lacks, in one message.
    pub(crate) fn new(
        platform: &mut P,
        snapshot: Snapshot,
        memory: SavedMemory,
    ) -> Result<Self, Error> {
        let parts = &snapshot.parts;
        let refuse = |cause| snapshot.refuse(cause);
        let here = std::env::consts::ARCH;
        if parts.plan.arch != here {
            let arch = parts.plan.arch.escape_debug();
            return Err(refuse(format!(
                "it is a machine of {arch}, and this host is {here}"
            )));
        }
        let memory = MemorySource::new(memory, &snapshot)?;
        let (state, differences) = snapshot.judge(platform)?;
        if !differences.is_empty() {
            let texts: Vec<_> = differences.iter().map(ToString::to_string).collect();
            return Err(refuse(texts.join("; ")));
        }
        Ok(Self {
            snapshot,
            memory,
            state,
            inherited: None,
        })
    }

    /// One that this process has inherited with its RAM; what only its platform can read, `parts` have not.
    pub(crate) fn inherited(
        parts: Parts,
        state: PlatformState<P>,
        ram: GuestRam,
        inherited: Inherited,
    ) -> Self {
        Self {
            snapshot: Snapshot::of(parts, "a VM that was forked"),
            memory: MemorySource::Inherited(ram),
            state,
            inherited: Some(inherited),
        }
    }

    /// Its RAM, if that is there already.
    pub(crate) fn ram(&self) -> Option<&GuestRam> {
        match &self.memory {
            MemorySource::Inherited(ram) => Some(ram),
            _ => None,
        }
    }

    /// Whether its RAM is there already.
    pub(crate) fn has_ram(&self) -> bool {
        self.ram().is_some()
    }

    /// Its RAM, which shows the files that have its content if it may.
    pub(crate) fn map(&self, backing: Backing) -> Result<GuestRam, Error> {
        match &self.memory {
            MemorySource::Inherited(ram) => Ok(ram.clone()),
            other => map_image(self.plan(), backing, other.image()),
        }
    }

    /// Has another process bring it, if one shall.
    pub(crate) fn hand_over(
        &self,
        ram: &GuestRam,
        handle: &VmHandle,
    ) -> Result<Option<Handled>, Error> {
        if let Some(inherited) = &self.inherited {
            inherited.wait.wait();
        }
        let MemorySource::Handler(socket, uffd) = &self.memory else {
            return Ok(None);
        };
        let twice = socket
            .try_clone()
            .and_then(|socket| Ok((socket, uffd.try_clone()?)));
        let (socket, uffd) = twice.map_err(Error::host("cannot have a descriptor twice"))?;
        let parts = &self.snapshot.parts;
        let page = Backing::of(&parts.config).pool();
        let page = page.unwrap_or(rustix::param::page_size() as u64);
        Handled::new(ram, &parts.memory, page, (socket, uffd), handle.clone()).map(Some)
    }

    /// What the machine knows of itself.
    pub(crate) fn chain(self) -> Chain {
        if let Some(inherited) = self.inherited {
            return inherited.chain;
        }
        let Parts {
            about,
            memory,
            config,
            ..
        } = self.snapshot.parts;
        let image = match self.memory {
            MemorySource::Lazy(image) | MemorySource::Prefault(image) => Some(image),
            MemorySource::Handler(..) | MemorySource::Inherited(_) => None,
        };
        let image = image.filter(|_| Backing::of(&config).maps_files());
        Chain::new(image.map(|image| Origin {
            base: Base {
                id: about.id,
                layout: memory,
                // Nobody has seen another one before it.
                runs: Vec::new(),
            },
            image: Arc::new(image),
        }))
    }

    /// The descriptors of files that it knows.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        let Some(inherited) = &self.inherited else {
            return Vec::new();
        };
        let mut all = inherited.chain.descriptors();
        all.push(inherited.wait.raw());
        all
    }

    /// The machine.
    pub(crate) fn plan(&self) -> &MachinePlan {
        self.snapshot.plan()
    }

    /// Loads everything.
    pub(crate) fn load(&mut self, machine: &Empty<'_, P>) -> Result<(), Error> {
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
        let brought = match &self.memory {
            // Into memory that cannot show a file.
            MemorySource::Lazy(image) | MemorySource::Prefault(image)
                if !Backing::of(&parts.config).maps_files() =>
            {
                memory::read(ram, &parts.memory, image)
            }
            MemorySource::Prefault(image) => memory::populate(ram, &parts.memory, image),
            MemorySource::Lazy(_) | MemorySource::Handler(..) | MemorySource::Inherited(_) => {
                Ok(())
            }
        };
        brought.map_err(|source| wrong_memory(&self.snapshot, source))?;
        self.pass_time(platform);
        let parts = &self.snapshot.parts;
        for ((id, vcpu), state) in (0..).zip(vcpus).zip(&self.state.vcpus) {
            let setup = platform.configure_saved(id, &parts.plan, state)?;
            let applied = platform.apply_vcpu(vm, vcpu, &setup);
            applied.map_err(|error| self.refuse(error))?;
        }
        platform.load_clock(vm, &self.state.clock)?;
        platform.load_chip(vm, chip, &self.state.chip)?;
        for (vcpu, state) in vcpus.iter().zip(&self.state.vcpus) {
            let loaded = platform.load_vcpu(vm, vcpu, state);
            loaded.map_err(|error| self.refuse(error))?;
            if self.inherited.is_some() || self.snapshot.clock == RestoredClock::Realtime {
                platform.vcpu_paused(vcpu);
            }
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

    /// Moves the time on that the guest will find, if it is to be: as late as can be, since bringing memory takes time.
    fn pass_time(&mut self, platform: &P) {
        if let Some(inherited) = &self.inherited {
            let (passed, state) = (inherited.since.elapsed(), &mut self.state);
            return platform.pass_time(passed, &mut state.clock, &mut state.vcpus);
        }
        if self.snapshot.clock == RestoredClock::Stopped {
            return;
        }
        match clock::since(self.snapshot.saved_ms()) {
            Some(passed) => {
                platform.pass_time(passed, &mut self.state.clock, &mut self.state.vcpus);
                log::debug!(
                    "the guest's clocks are moved on by {} ms",
                    passed.as_millis()
                );
            }
            None => log::warn!(
                "the VM was saved at a time that is still to come by this host's clock: its guest's clocks go on where \
                 they stopped"
            ),
        }
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
