//! The devices of a running machine, by their ids.
//!
//! It knows what a command can name: the virtio devices, each behind its transport. What the guest reaches is on
//! the bus; this is the VMM's way to the same devices.

#[cfg(feature = "virtio")]
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ::devices::BusDevice;
#[cfg(feature = "virtio")]
use ::devices::virtio::{DeviceState, Monitor, Notice, VirtioTransport};

#[cfg(any(feature = "virtio", feature = "snapshot"))]
use ::devices::descriptor::DiskFile;
use ::devices::{Change, Query, Report};
#[cfg(feature = "virtio")]
use ::devices::{ChangeError, NewFile};

#[cfg(feature = "snapshot")]
use ::devices::state::StateError;

use arch::DeviceKind;

#[cfg(feature = "snapshot")]
use crate::Error;
use crate::control::command::{CommandError, DeviceStatus};
#[cfg(feature = "virtio")]
use crate::control::event::Happening;
use crate::control::handle::VmHandle;
use crate::control::metrics::DeviceReport;
use crate::devices::counted::{self, Accesses, Counted};
use crate::devices::opened::Lasting;
#[cfg(all(feature = "virtio", feature = "snapshot"))]
use crate::threads::patiently;

/// Why a device does not go on.
#[cfg(feature = "snapshot")]
#[derive(Debug)]
pub(crate) struct NotLoaded {
    pub(crate) id: String,
    /// The key of such devices in a configuration.
    pub(crate) kind: &'static str,
    pub(crate) error: StateError,
}

/// The state of a virtio device, by its id.
#[cfg(all(feature = "virtio", feature = "snapshot"))]
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedVirtio {
    pub(crate) id: String,
    pub(crate) state: ::devices::state::VirtioState,
}

/// There are none without virtio.
#[cfg(all(not(feature = "virtio"), feature = "snapshot"))]
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum SavedVirtio {}

/// A device and its name.
#[cfg(feature = "virtio")]
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) kind: &'static str,
    pub(crate) transport: Arc<dyn VirtioTransport>,
    /// The device's own, which is there whatever the transport is at.
    pub(crate) monitor: Arc<Monitor>,
}

#[cfg(feature = "virtio")]
impl Entry {
    /// It has no such thing.
    fn foreign(&self, what: &'static str) -> CommandError {
        CommandError::Foreign {
            device: self.id.clone(),
            kind: self.kind,
            change: what,
        }
    }
}

/// The devices of a machine, in the order of the plan.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    #[cfg(feature = "virtio")]
    entries: Vec<Entry>,
    /// Of devices without an id, by their names.
    accesses: Vec<(&'static str, Arc<Accesses>)>,
}

impl Registry {
    /// Has the accesses to a device counted from now on, if anybody would look for that.
    pub(crate) fn counted(
        &mut self,
        kind: DeviceKind,
        device: Arc<dyn BusDevice>,
    ) -> Arc<dyn BusDevice> {
        let Some(name) = counted::name(kind) else {
            return device;
        };
        let accesses = Arc::<Accesses>::default();
        self.accesses.push((name, Arc::clone(&accesses)));
        Arc::new(Counted::new(device, &accesses))
    }

    /// The accesses to each device that is counted.
    pub(crate) fn accesses(&self) -> impl Iterator<Item = (&'static str, [u64; 2])> {
        let accesses = self.accesses.iter();
        accesses.map(|(name, accesses)| (*name, accesses.numbers()))
    }
}

#[cfg(feature = "virtio")]
impl Registry {
    /// Adds a device of a kind; the configuration has seen to it that no other one has its id.
    pub(crate) fn add(
        &mut self,
        id: String,
        kind: &'static str,
        transport: Arc<dyn VirtioTransport>,
    ) {
        self.entries.push(Entry {
            id,
            kind,
            monitor: transport.monitor(),
            transport,
        });
    }

    /// What happens to the devices is told to whoever has subscribed.
    pub(crate) fn publish_to(&self, handle: &VmHandle) {
        for entry in &self.entries {
            let (id, handle) = (entry.id.clone(), handle.clone());
            let listener = Arc::new(move |notice| {
                if let Some(what) = happening(&id, notice) {
                    handle.publish(what);
                }
            });
            entry.monitor.notices().listen(listener);
        }
    }

    /// What each device has counted.
    pub(crate) fn metrics(&self) -> Vec<DeviceReport> {
        let report = |entry: &Entry| DeviceReport {
            id: entry.id.clone(),
            kind: entry.kind.to_owned(),
            counted: entry.monitor.read(),
        };
        self.entries.iter().map(report).collect()
    }

    /// Stops every device that runs, with what is in flight answered. No vCPU may run meanwhile.
    pub(crate) fn pause(&self) {
        self.entries
            .iter()
            .for_each(|entry| entry.transport.pause());
    }

    /// Lets them go on.
    pub(crate) fn resume(&self) {
        self.entries
            .iter()
            .for_each(|entry| entry.transport.resume());
    }

    /// Ends the threads of devices that are quiet, until [`Self::unpark`].
    #[cfg(feature = "snapshot")]
    pub(crate) fn park(&self) {
        self.entries.iter().for_each(|entry| entry.transport.park());
    }

    /// Each has its thread again.
    ///
    /// # Errors
    /// When the host refuses one. It may be tried again.
    #[cfg(feature = "snapshot")]
    pub(crate) fn unpark(&self) -> Result<(), Error> {
        for entry in &self.entries {
            let started = patiently(|| entry.transport.unpark());
            started.map_err(Error::host(format!(
                "cannot start the thread of {}",
                entry.id
            )))?;
        }
        Ok(())
    }

    /// What the devices have written is where it stays; they are quiet.
    #[cfg(feature = "snapshot")]
    pub(crate) fn sync(&self) -> Result<(), String> {
        let sync = |entry: &Entry| {
            let synced = entry.transport.sync();
            synced.map_err(|error| format!("the device {}: {error}", entry.id))
        };
        self.entries.iter().try_for_each(sync)
    }

    /// What of each device goes on in another machine; they are quiet.
    #[cfg(feature = "snapshot")]
    pub(crate) fn save(&self) -> Result<Vec<SavedVirtio>, String> {
        let save = |entry: &Entry| {
            let saved = entry.transport.save();
            let state = saved.map_err(|error| format!("the device {}: {error}", entry.id))?;
            Ok(SavedVirtio {
                id: entry.id.clone(),
                state,
            })
        };
        self.entries.iter().map(save).collect()
    }

    /// And back, into new ones: each has its state.
    #[cfg(feature = "snapshot")]
    pub(crate) fn load(&self, saved: &[SavedVirtio]) -> Result<(), NotLoaded> {
        let is_here = |saved: &SavedVirtio| self.entries.iter().any(|entry| entry.id == saved.id);
        if let Some(other) = saved.iter().find(|saved| !is_here(saved)) {
            return Err(NotLoaded {
                id: other.id.clone(),
                kind: "virtio",
                error: StateError::Foreign,
            });
        }
        for entry in &self.entries {
            let found = saved.iter().find(|saved| saved.id == entry.id);
            let found = found.ok_or(StateError::Foreign);
            let loaded = found.and_then(|found| entry.transport.load(&found.state));
            loaded.map_err(|error| NotLoaded {
                id: entry.id.clone(),
                kind: entry.kind,
                error,
            })?;
        }
        Ok(())
    }

    /// Resets all devices and gives back those that are not lost.
    pub(crate) fn take(self) -> Vec<(String, Lasting)> {
        let take = |entry: Entry| Some((entry.id, entry.transport.take_device()?));
        self.entries.into_iter().filter_map(take).collect()
    }

    /// Changes a device; `files` come beside the change.
    pub(crate) fn change(
        &self,
        id: &str,
        change: &Change,
        files: Vec<OwnedFd>,
    ) -> Result<(), CommandError> {
        let entry = self.entry(id)?;
        let mut files = files.into_iter().map(File::from);
        let changed = match (change, files.next()) {
            (Change::File(NewFile { name, .. }), Some(file)) => {
                change.check().map_err(ChangeError::from).and_then(|()| {
                    let again = files.next();
                    entry.transport.replace_file(DiskFile { file, again }, name)
                })
            }
            _ => entry.transport.change(change),
        };
        changed.map_err(|error| match error {
            ChangeError::Foreign => entry.foreign(change.name()),
            source => CommandError::Device {
                device: id.to_owned(),
                change: change.name(),
                source,
            },
        })
    }

    /// The open file behind a device that does nothing.
    #[cfg(feature = "snapshot")]
    pub(crate) fn file(&self, id: &str) -> Result<DiskFile, CommandError> {
        let entry = self.entry(id)?;
        entry.transport.file().map_err(|error| match error {
            ChangeError::Foreign => entry.foreign("file"),
            error => CommandError::NotSaved(format!("the device {id}: {error}")),
        })
    }

    /// Has a device tell something.
    pub(crate) fn query(&self, id: &str, query: Query) -> Result<Report, CommandError> {
        let entry = self.entry(id)?;
        entry.transport.query(query).map_err(|error| match error {
            ChangeError::Foreign => entry.foreign(query.name()),
            source => CommandError::Query {
                device: id.to_owned(),
                query: query.name(),
                source,
            },
        })
    }

    fn entry(&self, id: &str) -> Result<&Entry, CommandError> {
        let entry = self.entries.iter().find(|entry| entry.id == id);
        entry.ok_or_else(|| {
            let ids = self.entries.iter().map(|entry| entry.id.clone());
            no_device(id, ids.collect())
        })
    }

    pub(crate) fn status(&self) -> Vec<DeviceStatus> {
        let status = |entry: &Entry| DeviceStatus {
            id: entry.id.clone(),
            kind: entry.kind.to_owned(),
            state: match entry.transport.state() {
                DeviceState::Idle => "idle",
                DeviceState::Running => "running",
                DeviceState::NeedsReset => "needs-reset",
                _ => "lost",
            }
            .to_owned(),
        };
        self.entries.iter().map(status).collect()
    }
}

/// What a device tells, as an event.
#[cfg(feature = "virtio")]
fn happening(id: &str, notice: Notice) -> Option<Happening> {
    let device = id.to_owned();
    Some(match notice {
        Notice::DriverReady { times } => Happening::DriverReady { device, times },
        Notice::NeedsReset { cause, times } => Happening::NeedsReset {
            device,
            cause,
            times,
        },
        Notice::Lost { cause } => Happening::DeviceLost { device, cause },
        Notice::Limited { times } => Happening::Limited { device, times },
        Notice::HostError { cause, times } => Happening::Error {
            device: Some(device),
            cause,
            times,
        },
        _ => return None,
    })
}

#[cfg(not(feature = "virtio"))]
impl Registry {
    pub(crate) fn publish_to(&self, _: &VmHandle) {}

    pub(crate) fn metrics(&self) -> Vec<DeviceReport> {
        Vec::new()
    }

    pub(crate) fn pause(&self) {}

    pub(crate) fn resume(&self) {}

    #[cfg(feature = "snapshot")]
    pub(crate) fn park(&self) {}

    #[cfg(feature = "snapshot")]
    pub(crate) fn unpark(&self) -> Result<(), Error> {
        Ok(())
    }

    #[cfg(feature = "snapshot")]
    pub(crate) fn sync(&self) -> Result<(), String> {
        Ok(())
    }

    #[cfg(feature = "snapshot")]
    pub(crate) fn save(&self) -> Result<Vec<SavedVirtio>, String> {
        Ok(Vec::new())
    }

    #[cfg(feature = "snapshot")]
    pub(crate) fn load(&self, _: &[SavedVirtio]) -> Result<(), NotLoaded> {
        Ok(())
    }

    pub(crate) fn take(self) -> Vec<(String, Lasting)> {
        Vec::new()
    }

    pub(crate) fn change(&self, id: &str, _: &Change, _: Vec<OwnedFd>) -> Result<(), CommandError> {
        Err(no_device(id, Vec::new()))
    }

    #[cfg(feature = "snapshot")]
    pub(crate) fn file(&self, id: &str) -> Result<DiskFile, CommandError> {
        Err(no_device(id, Vec::new()))
    }

    pub(crate) fn query(&self, id: &str, _: Query) -> Result<Report, CommandError> {
        Err(no_device(id, Vec::new()))
    }

    pub(crate) fn status(&self) -> Vec<DeviceStatus> {
        Vec::new()
    }
}

fn no_device(id: &str, ids: Vec<String>) -> CommandError {
    CommandError::NoDevice {
        device: id.to_owned(),
        ids,
    }
}
