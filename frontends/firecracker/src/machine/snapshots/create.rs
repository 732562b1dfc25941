//! Saving a machine that is paused.

use std::fs::File;
use std::os::fd::OwnedFd;

use vmm_reference::{Command, CommandError, Reply, SavedForm, Snapshot, VmHandle};

use super::super::configuration::Configuration;
use super::super::terms::Options;
use super::files::{self, Has, NewFile};
use super::note;
use crate::api::snapshots::{CreateSnapshotParams, SnapshotType};
use crate::saved::{self, Content, LastMemory};
use crate::texts::{CreateFault, refused};

/// What a state calls its file of memory; nobody looks for it by that.
const MEMORY: &str = "memory";
const MIB: u64 = 1 << 20;

/// What of memory is written, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
struct How {
    form: SavedForm,
    since: Option<String>,
}

/// The ways to write what is asked for, the best one first. `last` is the id of the machine that this one was saved as
/// last, or was.
fn ways(kind: SnapshotType, tracks: bool, last: Option<&str>) -> Vec<How> {
    let how = |form, since: Option<&str>| How {
        form,
        since: since.map(str::to_owned),
    };
    match (kind, last) {
        // From now on it is told what changes. A host that cannot tell saves all of it nevertheless.
        (SnapshotType::Full, _) if tracks => {
            vec![how(SavedForm::Layer, Some("")), how(SavedForm::Layer, None)]
        }
        (SnapshotType::Full, _) => vec![how(SavedForm::Layer, None)],
        // All of it has changed since memory was zeros.
        (SnapshotType::Diff, None) => {
            vec![how(SavedForm::Layer, Some("")), how(SavedForm::Layer, None)]
        }
        (SnapshotType::Diff, last) => {
            vec![how(SavedForm::InPlace, last), how(SavedForm::InPlace, None)]
        }
    }
}

/// A machine that was saved.
#[derive(Debug)]
pub(in crate::machine) struct Saved {
    pub(in crate::machine) id: String,
    pub(in crate::machine) memory: LastMemory,
}

/// Saves it; `last` is what it was saved as last, or was.
pub(in crate::machine) fn create(
    handle: &VmHandle,
    params: &CreateSnapshotParams,
    last: Option<&Saved>,
    configuration: &Configuration,
    options: &Options,
) -> Result<Saved, CreateFault> {
    let state = NewFile::open(&params.snapshot_path).map_err(CreateFault::State)?;
    // What is written there is small, and is only put there when it is whole.
    let state = state.with_scratch().map_err(CreateFault::State)?;
    let memory = NewFile::open(&params.mem_file_path).map_err(CreateFault::Memory)?;
    if state.is_same(&memory) {
        return Err(CreateFault::SameFile);
    }
    let len = (configuration.machine.mem_size_mib as u64).saturating_mul(MIB);
    // What it will have, and the bytes of data in it that are known to be changes.
    let (content, before) = match (params.snapshot_type, last) {
        (SnapshotType::Full, _) | (SnapshotType::Diff, None) => (Content::Full, 0),
        (SnapshotType::Diff, Some(last)) => match memory.has(len) {
            Has::Other => (Content::Diff, 0),
            Has::Memory(file) => match last.memory.is_in(file) {
                Some(content) => (content, saved::content(file).map_or(0, |(_, data)| data)),
                None => return Err(CreateFault::NotBase(params.mem_file_path.clone())),
            },
        },
    };
    let mark = saved::random().map_err(CreateFault::Publish)?;
    let note = note::of(configuration, options, &mark).text();
    let tracks = configuration.machine.track_dirty_pages;
    let mut refusal = None;
    let known = last.map(|last| &*last.id);
    for How { form, since } in ways(params.snapshot_type, tracks, known) {
        state.empty().map_err(CreateFault::State)?;
        let form = match memory.stays() {
            // This process may have it for its guest's memory, so it is not cut.
            Some(found) if found == len => SavedForm::InPlace,
            // Nobody knows yet whether the machine can be saved.
            Some(1..) => SavedForm::Replace,
            Some(0) | None => form,
        };
        let begun = match form {
            SavedForm::Replace => Ok(()),
            SavedForm::InPlace => memory.begin_with(len),
            _ => memory.empty(),
        };
        begun.map_err(CreateFault::Memory)?;
        let command = Command::Snapshot {
            memory: MEMORY.to_owned(),
            since,
            copies: Vec::new(),
            form,
            note: Some(note.clone()),
        };
        let open = |file: &File| file.try_clone().map(OwnedFd::from);
        let open = [state.written(), memory.written()].map(open);
        let open = open.into_iter().collect::<Result<Vec<_>, _>>();
        match handle.command_with(command, open.map_err(CreateFault::Memory)?) {
            Ok(reply) => {
                let written = match reply {
                    Reply::Snapshot(written) => written.memory_bytes,
                    _ => 0,
                };
                let saved = state.written().try_clone().map_err(CreateFault::State)?;
                let saved = Snapshot::read("the new state", saved);
                let saved = saved.map_err(|error| CreateFault::Refused(error.chain()))?;
                let file = memory.written().try_clone();
                let file = file.map_err(CreateFault::Memory)?;
                let whole = saved::Mark {
                    text: &mark,
                    content,
                    most: before.saturating_add(written),
                };
                files::publish(state, memory, &whole).map_err(CreateFault::Publish)?;
                return Ok(Saved {
                    id: saved.id().to_owned(),
                    memory: LastMemory::new(mark, Some(&file), Some(content)),
                });
            }
            // Perhaps the next way is one.
            Err(error @ CommandError::NotSaved(_)) => {
                log::debug!("{error}");
                refusal = Some(error);
            }
            Err(error) => return Err(CreateFault::Refused(refused(&error))),
        }
    }
    let said = refusal.map_or_else(String::new, |error| refused(&error));
    Err(CreateFault::Refused(said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_written_where_there_is_something_that_it_changed_since() {
        let first = |kind, tracks, last| ways(kind, tracks, last).swap_remove(0);
        let how = |form, since: Option<&str>| How {
            form,
            since: since.map(str::to_owned),
        };
        for (kind, tracks, last, expected) in [
            (SnapshotType::Full, false, None, how(SavedForm::Layer, None)),
            (
                SnapshotType::Full,
                true,
                Some("a"),
                how(SavedForm::Layer, Some("")),
            ),
            (
                SnapshotType::Diff,
                true,
                None,
                how(SavedForm::Layer, Some("")),
            ),
            (
                SnapshotType::Diff,
                true,
                Some("a"),
                how(SavedForm::InPlace, Some("a")),
            ),
            (
                SnapshotType::Diff,
                false,
                Some("a"),
                how(SavedForm::InPlace, Some("a")),
            ),
        ] {
            assert_eq!(first(kind, tracks, last), expected);
        }
    }
}
