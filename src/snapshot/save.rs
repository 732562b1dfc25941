//! Saves a machine whose guest stands still.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arch::{KvmError, KvmPlatform, MachinePlan, Space};
#[cfg(feature = "virtio")]
use devices::state::VirtioDeviceState;
use kvm_ioctls::VmFd;

use super::memory::{self, MemoryLayout};
use super::saved::{About, Parts, SavedDevice, to_bytes};
use crate::VmConfig;
use crate::control::command::CommandError;
use crate::devices::registry::{Registry, SavedVirtio};
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
}

fn host(source: io::Error) -> CommandError {
    CommandError::Host {
        command: "snapshot",
        source,
    }
}

fn kvm(error: KvmError) -> CommandError {
    match error {
        KvmError::Failed { operation, source } => host(io::Error::new(
            source.kind(),
            format!("{operation}: {source}"),
        )),
        other => CommandError::NotSaved(other.to_string()),
    }
}

/// A path that means the same wherever the machine goes on.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

impl<P: KvmPlatform> Machine<'_, P> {
    /// Writes the state to the first file and RAM to the second one, which will be called `memory`; gives the bytes of
    /// RAM that are no zeros.
    pub(crate) fn save(&self, memory: &str, files: Vec<OwnedFd>) -> Result<u64, CommandError> {
        let Ok([state, ram]) = <[OwnedFd; 2]>::try_from(files) else {
            return Err(CommandError::NotSaved("two files belong to it".to_owned()));
        };
        let (state, ram) = (File::from(state), File::from(ram));
        memory::check_empty([&state, &ram]).map_err(host)?;
        let layout = MemoryLayout::of(self.plan, memory);
        layout.check(self.plan).map_err(CommandError::NotSaved)?;
        // First: what cannot be saved is known before anything is written. The chip may write guest memory.
        let parts = self.parts(layout)?;
        let bytes = parts.to_bytes().map_err(CommandError::NotSaved)?;
        let written = memory::write(&self.shared.ram, &parts.memory, &ram).map_err(host)?;
        state.write_all_at(&bytes, 0).map_err(host)?;
        state.sync_data().map_err(host)?;
        Ok(written)
    }

    fn parts(&self, memory: MemoryLayout) -> Result<Parts, CommandError> {
        let platform = &self.shared.platform;
        let devices = self.devices()?;
        let virtio = self.registry.save().map_err(CommandError::NotSaved)?;
        let promise = platform.promise().ok_or(KvmError::NotSaved("a vCPU"));
        let vcpus = self
            .threads
            .each(|platform, vcpu, _| platform.save_vcpu(self.vm, vcpu));
        let vcpus = vcpus
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .map_err(kvm)?;
        let chip = platform.save_chip(self.vm, self.chip).map_err(kvm)?;
        let clock = platform.save_clock(self.vm).map_err(kvm)?;
        let saved = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let failed = CommandError::NotSaved;
        Ok(Parts {
            about: About {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                saved_ms: u64::try_from(saved.as_millis()).unwrap_or(u64::MAX),
            },
            plan: self.plan.clone(),
            config: self.config(&virtio),
            memory,
            devices,
            virtio,
            promise: to_bytes(&promise.map_err(kvm)?).map_err(failed)?,
            vcpus: to_bytes(&vcpus).map_err(failed)?,
            chip: to_bytes(&chip).map_err(failed)?,
            clock: to_bytes(&clock).map_err(failed)?,
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
        // A command may have put another file behind a disk.
        #[cfg(feature = "virtio")]
        for device in config.named_devices() {
            let saved = virtio.iter().find(|saved| saved.id == device.id);
            if let (Some(VirtioDeviceState::Block(state)), Some(disk)) = (
                saved.map(|saved| &saved.state.device),
                config.blk.get_mut(device.place),
            ) {
                disk.path = absolute(&state.name);
            }
        }
        if let Some(vsock) = &mut config.vsock {
            vsock.path = absolute(&vsock.path);
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
