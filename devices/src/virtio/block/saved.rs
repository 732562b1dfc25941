//! What of a disk goes on in another machine, and whether its file is still the one that the guest knows.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::Block;
use crate::state::{BlockState, StateError, VirtioDeviceState};

/// When a file was last written, if that is known.
fn written(found: &Metadata) -> Option<(i64, u32)> {
    let nanos = u32::try_from(found.mtime_nsec()).unwrap_or(0);
    let has_time = !found.file_type().is_block_device();
    has_time.then_some((found.mtime(), nanos))
}

impl Block {
    fn failed(&self, error: &io::Error) -> StateError {
        StateError::File(self.path.display().to_string(), error.to_string())
    }

    /// All that was written is on the disk then.
    pub(super) fn state(&self) -> Result<VirtioDeviceState, StateError> {
        if !self.read_only {
            self.file.sync_all().map_err(|error| self.failed(&error))?;
        }
        let found = self.file.metadata().map_err(|error| self.failed(&error))?;
        Ok(VirtioDeviceState::Block(BlockState {
            sectors: self.sectors,
            block: self.block,
            name: self.path.clone(),
            written: written(&found),
            limits: self.limiter.save(),
        }))
    }

    pub(super) fn set_state(
        &mut self,
        state: &VirtioDeviceState,
        runs: bool,
    ) -> Result<(), StateError> {
        let VirtioDeviceState::Block(state) = state else {
            return Err(StateError::Foreign);
        };
        if state.sectors != self.sectors || runs && state.block != self.block {
            return Err(StateError::Size {
                path: self.path.display().to_string(),
                sectors: self.sectors,
                block: self.block,
                known: (state.sectors, state.block),
            });
        }
        let found = self.file.metadata().map_err(|error| self.failed(&error))?;
        if state.written.is_some() && state.written != written(&found) {
            return Err(StateError::Changed(self.path.display().to_string()));
        }
        self.limiter.load(&state.limits)
    }
}
