//! The devices of a running machine, by their ids.
//!
//! It knows what a command can name: the virtio devices, each behind its transport. What the guest reaches is on
//! the bus; this is the VMM's way to the same devices.

use std::os::fd::OwnedFd;
#[cfg(feature = "virtio")]
use std::sync::Arc;

#[cfg(feature = "virtio")]
use ::devices::virtio::{DeviceState, Monitor, Notice, VirtioTransport};

use ::devices::{Change, Query, Report};
#[cfg(feature = "virtio")]
use ::devices::{ChangeError, NewFile};

#[cfg(feature = "snapshot")]
use ::devices::state::StateError;

use crate::control::command::{CommandError, DeviceStatus};
#[cfg(feature = "virtio")]
use crate::control::event::Happening;
use crate::control::handle::VmHandle;
use crate::control::metrics::DeviceReport;
use crate::devices::opened::Lasting;

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
        let changed = match (change, files.into_iter().next()) {
            (Change::File(NewFile { name }), Some(file)) => change
                .check()
                .map_err(ChangeError::from)
                .and_then(|()| entry.transport.replace_file(file, name)),
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
