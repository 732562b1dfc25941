//! Saves a machine whose guest stands still.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arch::{KvmError, KvmPlatform, MachinePlan, Space, VirtioKind};
#[cfg(feature = "virtio")]
use devices::state::VirtioDeviceState;
use kvm_ioctls::VmFd;

use super::chain::{Chain, Next};
use super::disk::{self, Copying};
use super::layout::MemoryLayout;
use super::memory::{self, Before};
use super::merge::new_id;
use super::platform::PlatformState;
use super::saved::{About, Parts, SavedDevice, to_bytes};
use super::saving::{Place, Writing, host};
use crate::VmConfig;
use crate::control::command::CommandError;
use crate::control::saving::{DiskCopy, SavedForm};
use crate::devices::registry::{Registry, SavedVirtio};
use crate::memory::image::MemoryImage;
use crate::vm::vcpu::{Shared, VcpuThreads};

/// A machine whose vCPUs stand at their gate and whose devices are quiet.
pub(crate) struct Machine<'a, P: KvmPlatform> {
    pub(crate) threads: &'a VcpuThreads<P>,
    pub(crate) shared: &'a Shared<P>,
    pub(crate) chip: &'a P::Chip,
    pub(crate) vm: &'a Arc<VmFd>,
    pub(crate) registry: &'a Registry,
    pub(crate) plan: &'a MachinePlan,
    pub(crate) config: &'a VmConfig,
    /// What the files are that its guest begins with when it starts again.
    pub(crate) images: &'a [(u64, u64)],
}

fn kvm(error: KvmError) -> CommandError {
    match error {
        KvmError::Failed { operation, source } => host(io::Error::new(
            source.kind(),
            format!("{operation}: {source}"),
        )),
        KvmError::Lacks { cure, .. } => CommandError::NotSaved(format!("{error}: {cure}")),
        other => CommandError::NotSaved(other.to_string()),
    }
}

/// What a machine is saved to.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// What the file of RAM will be called.
    pub(crate) memory: &'a str,
    /// Only what changed since this machine, if the chain knows it.
    pub(crate) since: Option<&'a str>,
    /// What the file of RAM gets.
    pub(crate) form: SavedForm,
    /// For whoever restores it.
    pub(crate) note: Option<&'a str>,
    /// The disks that are copied.
    pub(crate) copies: &'a [DiskCopy],
    /// For the state, for RAM, for each copy.
    pub(crate) files: Vec<OwnedFd>,
}

impl<P: KvmPlatform> Machine<'_, P> {
    /// What it takes to write it. The machine stands still until that is done.
    pub(crate) fn prepare(
        &self,
        wanted: Wanted<'_>,
        chain: &mut Chain,
    ) -> Result<(Writing, Option<Next>), CommandError> {
        let files: Vec<_> = wanted.files.into_iter().map(File::from).collect();
        let all = self.plan.ram_size();
        let (before, place) = match wanted.form {
            SavedForm::Layer => (Before::Nothing, Place::Behind),
            SavedForm::InPlace => (Before::Memory(all), Place::Own),
            SavedForm::Replace => (Before::Anything, Place::OwnAnew),
        };
        memory::check_files(&files.iter().collect::<Vec<_>>(), before).map_err(host)?;
        let mut files = files.into_iter();
        let (Some(state), Some(file)) = (files.next(), files.next()) else {
            return Err(CommandError::NotSaved("two files belong to it".to_owned()));
        };
        let origin = chain.origin().map_err(host)?.cloned();
        if wanted.form != SavedForm::Layer {
            self.check_apart(&file, origin.as_deref(), wanted.form)?;
        }
        let memory = wanted.memory;
        let whole = MemoryLayout::whole(&self.plan.ram, memory);
        whole.check(self.plan).map_err(CommandError::NotSaved)?;
        let ram = &self.shared.ram;
        // First: what cannot be saved is known before anything is written. The chip may write guest memory.
        let mut parts = self.parts(whole)?;
        parts.note = wanted.note.map(str::to_owned);
        let copies = self.copies(wanted.copies, files, &mut parts)?;
        let is_handled = self.shared.handled.is_some();
        let next = match wanted.since {
            Some(_) if is_handled => {
                return Err(CommandError::NotSaved(
                    "its pages are brought by another process, and what changes in them is not told; save all of it \
                     instead"
                        .to_owned(),
                ));
            }
            Some(since) => {
                let files = self.shared.handle.proc_files();
                let next = chain.next(ram, since, &parts.memory, wanted.form, files);
                let next = next.map_err(|cause| {
                    CommandError::NotSaved(format!("{cause}; save all of it instead"))
                })?;
                let checked = next.layout.check(self.plan);
                checked.map_err(CommandError::NotSaved)?;
                parts.memory.clone_from(&next.layout);
                Some(next)
            }
            None => {
                chain.forget();
                None
            }
        };
        let runs = match &next {
            Some(next) => next.runs.clone(),
            None => std::iter::once(0..all).collect(),
        };
        let writing = Writing {
            runs,
            place,
            bytes: parts.to_bytes().map_err(CommandError::NotSaved)?,
            parts,
            ram: ram.clone(),
            origin,
            is_handled,
            files: [state, file],
            copies,
        };
        Ok((writing, next))
    }

    /// Whether nothing of the machine is lost with what the file for RAM has.
    fn check_apart(
        &self,
        file: &File,
        origin: Option<&MemoryImage>,
        form: SavedForm,
    ) -> Result<(), CommandError> {
        let mut others = Vec::new();
        let devices = self.config.named_devices();
        for disk in devices.iter().filter(|it| it.kind == VirtioKind::Block) {
            let disk = self.registry.file(&disk.id)?.file;
            others.push(("one of its disks", memory::identity(&disk).map_err(host)?));
        }
        let images = self.images.iter();
        others.extend(images.map(|image| ("its kernel or initrd", *image)));
        if form == SavedForm::Replace {
            // It would be cut while it is read.
            for mapped in origin.iter().flat_map(|origin| &origin.files) {
                let mapped = memory::identity(mapped).map_err(host)?;
                others.push(("one that its memory is mapped to", mapped));
            }
            let len = file.metadata().map_err(host)?.len();
            if self.shared.handled.is_some() && len > 0 {
                return Err(CommandError::NotSaved(
                    "its pages are brought by another process, perhaps from the file for its memory, which has something; \
                     name a new file"
                        .to_owned(),
                ));
            }
        }
        memory::check_apart(file, others).map_err(host)
    }

    /// The disks that are to be copied, which are the saved machine's from now on.
    fn copies(
        &self,
        wanted: &[DiskCopy],
        files: impl Iterator<Item = File>,
        parts: &mut Parts,
    ) -> Result<Vec<Copying>, CommandError> {
        disk::check(wanted).map_err(CommandError::NotSaved)?;
        let mut copies = Vec::new();
        for (copy, to) in wanted.iter().zip(files) {
            let from = self.registry.file(&copy.device)?.file;
            let copying = Copying::new(copy.clone(), from, to).map_err(host)?;
            copying.take_over(parts).map_err(CommandError::NotSaved)?;
            copies.push(copying);
        }
        Ok(copies)
    }

    /// All of it but the content of RAM, where what only the platform can read is not in the parts.
    pub(crate) fn state(
        &self,
        memory: MemoryLayout,
    ) -> Result<(Parts, PlatformState<P>), CommandError> {
        let platform = &self.shared.platform;
        let devices = self.devices()?;
        let virtio = self.registry.save().map_err(CommandError::NotSaved)?;
        let vcpus = self
            .threads
            .each(|platform, vcpu, _| platform.save_vcpu(self.vm, vcpu));
        let vcpus = vcpus
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .map_err(kvm)?;
        let state = PlatformState {
            vcpus,
            chip: platform.save_chip(self.vm, self.chip).map_err(kvm)?,
            clock: platform.save_clock(self.vm).map_err(kvm)?,
        };
        let saved = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let id = new_id().map_err(|error| host(io::Error::other(error)))?;
        let parts = Parts {
            about: About {
                id,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                saved_ms: u64::try_from(saved.as_millis()).unwrap_or(u64::MAX),
            },
            plan: self.plan.clone(),
            config: self.config(&virtio),
            memory,
            note: None,
            devices,
            virtio,
            promise: Vec::new(),
            vcpus: Vec::new(),
            chip: Vec::new(),
            clock: Vec::new(),
        };
        Ok((parts, state))
    }

    fn parts(&self, memory: MemoryLayout) -> Result<Parts, CommandError> {
        let promise = self.shared.platform.promise();
        let promise = promise.ok_or(KvmError::NotSaved("a vCPU")).map_err(kvm)?;
        let failed = CommandError::NotSaved;
        // Before the time of its last write is looked at.
        self.registry.sync().map_err(failed)?;
        let (parts, state) = self.state(memory)?;
        Ok(Parts {
            promise: to_bytes(&promise).map_err(failed)?,
            vcpus: to_bytes(&state.vcpus).map_err(failed)?,
            chip: to_bytes(&state.chip).map_err(failed)?,
            clock: to_bytes(&state.clock).map_err(failed)?,
            ..parts
        })
    }

    /// The configuration, as it is by now.
    fn config(&self, virtio: &[SavedVirtio]) -> VmConfig {
        #[cfg_attr(not(feature = "virtio"), allow(unused_mut))]
        let mut config = VmConfig {
            // The guest is beyond them, and a restore opens none.
            kernel: None,
            initrd: None,
            ..self.config.clone()
        };
        let files = self.shared.handle.proc_files();
        // A command may have put another file behind a disk.
        #[cfg(feature = "virtio")]
        for device in config.named_devices() {
            let saved = virtio.iter().find(|saved| saved.id == device.id);
            if let (Some(VirtioDeviceState::Block(state)), Some(disk)) = (
                saved.map(|saved| &saved.state.device),
                config.blk.get_mut(device.place),
            ) {
                disk.path = files.absolute(&state.name);
            }
        }
        if let Some(vsock) = &mut config.vsock {
            vsock.path = files.absolute(&vsock.path);
        }
        #[cfg(not(feature = "virtio"))]
        let _ = virtio;
        config
    }

    /// Those on the buses. One that says nothing of itself is an error.
    fn devices(&self) -> Result<Vec<SavedDevice>, CommandError> {
        let spaces = &self.shared.spaces;
        let mut devices = Vec::new();
        for (space, bus) in [(Space::Mmio, &spaces.mmio), (Space::Pio, &spaces.pio)] {
            for entry in bus.entries() {
                let base = entry.base;
                let state = entry.device.save().ok_or_else(|| {
                    CommandError::NotSaved(format!(
                        "{} is not known how to save",
                        self.name(space, base)
                    ))
                })?;
                devices.push(SavedDevice { space, base, state });
            }
        }
        Ok(devices)
    }

    /// What a message calls the device at a place.
    fn name(&self, space: Space, base: u64) -> String {
        let mut planned = self.plan.devices.iter();
        let found = planned.find(|device| (device.space, device.range.base) == (space, base));
        match found {
            Some(device) => match &device.id {
                Some(id) => format!("the device {id}"),
                None => format!("the device {}", device.kind),
            },
            None => format!("the embedder's device at {base:#x}"),
        }
    }
}
