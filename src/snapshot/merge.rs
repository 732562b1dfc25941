//! What the files of a saved machine's RAM are together.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::layout::MemoryLayout;
use super::load::wrong_memory;
use super::{Snapshot, memory};
use crate::Error;
use crate::memory::image::MemoryImage;
use crate::random::random;

impl Snapshot {
    /// Its files of RAM, which are as long as they have to be: memory may be these files, and what lies beyond their ends
    /// could not be read.
    pub(super) fn image(&self, files: Vec<File>) -> Result<MemoryImage, Error> {
        self.check_memory(&files)?;
        Ok(MemoryImage {
            files,
            parts: self.parts.memory.parts(),
        })
    }

    /// Whether these can be its files of memory, all of [`Snapshot::memory_files`] in their order.
    ///
    /// # Errors
    /// When there are more or fewer, or one has another length.
    pub fn check_memory(&self, files: &[File]) -> Result<(), Error> {
        let checked = self.parts.memory.check_files(files);
        checked.map_err(|source| wrong_memory(self, source))
    }

    /// Writes the same machine, but with all of its RAM in one file: the state to the first of two empty files, RAM to
    /// the second one, which will be called `name`. `memory` are the files that it has
    /// ([`Snapshot::memory_files`]). Gives the bytes of RAM that are no zeros.
    ///
    /// # Errors
    /// When a file is not what it has to be, or cannot be written.
    pub fn merge(&self, memory: Vec<File>, name: &str, files: [&File; 2]) -> Result<u64, Error> {
        let image = self.image(memory)?;
        let failed = |source: io::Error| Error::Host {
            what: format!("cannot merge {}", self.name),
            source,
        };
        let [state, ram] = files;
        memory::check_files(&files, memory::Before::Nothing).map_err(failed)?;
        let mut parts = self.parts.clone();
        // Whoever knows the one that it was would name its files, which may go.
        parts.about.id = new_id()?;
        parts.memory = MemoryLayout::whole(&parts.memory.regions, name);
        let bytes = parts
            .memory
            .check(&parts.plan)
            .and_then(|()| parts.to_bytes());
        let bytes = bytes.map_err(|cause| failed(io::Error::other(cause)))?;
        let written = memory::merge(&image, ram).map_err(failed)?;
        state.write_all_at(&bytes, 0).map_err(failed)?;
        state.sync_data().map_err(failed)?;
        Ok(written)
    }
}

/// What no other saved machine is called.
pub(super) fn new_id() -> Result<String, Error> {
    let id = u128::from_be_bytes(random::<16>()?);
    Ok(format!("{id:032x}"))
}
