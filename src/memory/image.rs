//! The memory image of a machine that goes on: the files, parts of which RAM shows at first.

use std::fs::File;
use std::io;

use arch::GuestRam;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// A part of RAM, by its place in it: regions are counted as if they lay one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) at: u64,
    /// In bytes.
    pub(crate) len: u64,
    /// Which file has it.
    pub(crate) file: usize,
    /// Where in the file.
    pub(crate) place: u64,
}

impl Part {
    pub(crate) fn end(&self) -> u64 {
        self.at + self.len
    }

    /// What of it lies between two places, if it is anything.
    pub(crate) fn cut(&self, from: u64, to: u64) -> Option<Self> {
        let (at, end) = (from.max(self.at), to.min(self.end()));
        (at < end).then(|| Self {
            at,
            len: end - at,
            file: self.file,
            place: self.place + (at - self.at),
        })
    }
}

/// The files that RAM is mapped to at first.
#[derive(Debug)]
pub(crate) struct MemoryImage {
    /// The first one has all of RAM.
    pub(crate) files: Vec<File>,
    /// In their order; together they are all of RAM.
    pub(crate) parts: Vec<Part>,
}

impl MemoryImage {
    /// Maps the parts of all files but the first one, which RAM is mapped to already.
    ///
    /// # Errors
    /// When the host does not map one.
    pub(super) fn lay_over(&self, ram: &GuestRam) -> io::Result<()> {
        let mut offset = 0;
        for region in ram.iter() {
            let end = offset + region.len();
            let parts = self.parts.iter().filter(|part| part.file > 0);
            for part in parts.filter_map(|part| part.cut(offset, end)) {
                let file = self.files.get(part.file);
                let file = file.ok_or_else(|| io::Error::other("a file of RAM is missing"))?;
                let place = region
                    .get_host_address(MemoryRegionAddress(part.at - offset))
                    .map_err(io::Error::other)?;
                let len = usize::try_from(part.len).map_err(io::Error::other)?;
                let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
                let access = ProtFlags::READ | ProtFlags::WRITE;
                // SAFETY: the range is guest RAM, a private mapping of `ram` that nobody has accessed yet and that is
                // unmapped as a whole, also after a failure that leaves a hole in it.
                unsafe { mmap(place.cast(), len, access, flags, file, part.place) }?;
            }
            offset = end;
        }
        Ok(())
    }
}
