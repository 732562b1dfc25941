//! What of a disk goes on in another machine, and whether its file is still the one that the guest knows.

use std::fs::File;
use std::io;

use super::Block;
use crate::ChangeError;
use crate::descriptor::DiskFile;
use crate::state::{BlockState, StateError, VirtioDeviceState};

impl Block {
    fn failed(&self, error: &io::Error) -> StateError {
        StateError::File(self.path.display().to_string(), error.to_string())
    }

    /// All that was written is on the disk then.
    pub(super) fn bring_to_disk(&self) -> Result<(), StateError> {
        if self.read_only {
            return Ok(());
        }
        self.file.sync_all().map_err(|error| self.failed(&error))
    }

    pub(super) fn state(&self) -> Result<VirtioDeviceState, StateError> {
        let found = self.file.metadata().map_err(|error| self.failed(&error))?;
        Ok(VirtioDeviceState::Block(BlockState {
            sectors: self.sectors,
            block: self.block,
            name: self.path.clone(),
            written: BlockState::last_written(&found),
            limits: self.limiter.save(),
        }))
    }

    /// The open file, once more.
    pub(super) fn file_again(&self) -> Result<DiskFile, ChangeError> {
        let (file, direct) = match &self.buffered {
            Some(buffered) => (buffered, Some(&self.file)),
            None => (&self.file, None),
        };
        let refused = |error: io::Error| ChangeError::Refused(error.to_string());
        Ok(DiskFile {
            file: file.try_clone().map_err(refused)?,
            again: direct.map(File::try_clone).transpose().map_err(refused)?,
        })
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
        if state.written.is_some() && state.written != BlockState::last_written(&found) {
            return Err(StateError::Changed(self.path.display().to_string()));
        }
        self.limiter.load(&state.limits)
    }
}
