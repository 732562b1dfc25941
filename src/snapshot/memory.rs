//! The content of RAM in a file: each region at an offset of its own, pages of zeros as holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use arch::{AddressRange, GuestRam, MachinePlan};
use rustix::fs::{OFlags, fcntl_getfl};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// What is looked at for zeros at once, in bytes.
const PAGE: usize = 4096;
/// What is read and written at once, in bytes.
const CHUNK: usize = 1 << 20;

/// Where the file has which part of RAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryLayout {
    /// The file's name, beside the state.
    pub(crate) file: String,
    /// In the order in which they lie in the file, one after the other.
    pub(crate) regions: Vec<AddressRange>,
}

impl MemoryLayout {
    pub(crate) fn of(plan: &MachinePlan, file: &str) -> Self {
        Self {
            file: file.to_owned(),
            regions: plan.ram.clone(),
        }
    }

    /// Whether it is that of a machine.
    pub(crate) fn check(&self, plan: &MachinePlan) -> Result<(), String> {
        if self.regions != plan.ram {
            return Err("its memory is not the machine's".to_owned());
        }
        let mut end = 0_u64;
        for range in &plan.ram {
            let is_whole =
                range.base.is_multiple_of(PAGE as u64) && range.len.is_multiple_of(PAGE as u64);
            let next = range.base.checked_add(range.len);
            end = next
                .filter(|_| is_whole && range.len > 0 && range.base >= end)
                .ok_or("its memory cannot be a machine's")?;
        }
        match self.file.as_str() {
            "" | "." | ".." | "state" => {
                Err("its file of memory has no name of its own".to_owned())
            }
            name if name.contains(['/', '\0']) => {
                Err("its file of memory is not beside it".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// How long the file is.
    pub(crate) fn len(&self) -> u64 {
        self.regions.iter().map(|range| range.len).sum()
    }
}

/// The pieces of RAM, with their offsets in the file.
fn pieces(layout: &MemoryLayout) -> impl Iterator<Item = (GuestAddress, u64, usize)> {
    let mut offset = 0;
    layout.regions.iter().flat_map(move |range| {
        let first = offset;
        offset += range.len;
        let len = range.len;
        (0..len).step_by(CHUNK).map(move |at| {
            let size = usize::try_from(len - at).unwrap_or(CHUNK).min(CHUNK);
            (GuestAddress(range.base + at), first + at, size)
        })
    })
}

fn failed(error: vm_memory::GuestMemoryError) -> io::Error {
    io::Error::other(error)
}

/// Whether files are two regular ones without content, which are written where we say: nothing hangs, and nothing is
/// overwritten.
pub(crate) fn check_empty(files: [&File; 2]) -> io::Result<()> {
    let refused = |cause: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, cause));
    for file in files {
        let found = file.metadata()?;
        if !found.is_file() || found.len() != 0 {
            return refused("a file for it is no empty regular file");
        }
        if fcntl_getfl(file)?.contains(OFlags::APPEND) {
            return refused("a file for it is open for appending");
        }
    }
    let [one, other] = [files[0].metadata()?, files[1].metadata()?];
    if (one.dev(), one.ino()) == (other.dev(), other.ino()) {
        return refused("both files for it are the same one");
    }
    Ok(())
}

/// Writes RAM to an empty file; gives the bytes that are no holes.
pub(crate) fn write(ram: &GuestRam, layout: &MemoryLayout, file: &File) -> io::Result<u64> {
    file.set_len(layout.len())?;
    let mut written = 0;
    let mut buffer = vec![0; CHUNK];
    for (address, offset, len) in pieces(layout) {
        let bytes = buffer.get_mut(..len).unwrap_or_default();
        let region = ram.find_region(address);
        match region.and_then(|region| Some((region.file_offset()?, region.start_addr()))) {
            // Looking at a hole of a file in memory by its mapping would give it a page.
            Some((backing, start)) => {
                let place = backing.start() + (address.0 - start.0);
                backing.file().read_exact_at(bytes, place)?;
            }
            None => ram.read_slice(bytes, address).map_err(failed)?,
        }
        let mut at = offset;
        // Neighbours that are no holes go together.
        for run in bytes
            .chunks(PAGE)
            .collect::<Vec<_>>()
            .chunk_by(|one, other| is_zero(one) == is_zero(other))
        {
            let len: usize = run.iter().map(|page| page.len()).sum();
            let start = usize::try_from(at - offset).unwrap_or(0);
            if let Some(data) = bytes
                .get(start..start + len)
                .filter(|_| !run.first().is_none_or(|page| is_zero(page)))
            {
                file.write_all_at(data, at)?;
                written += data.len() as u64;
            }
            at += len as u64;
        }
    }
    file.sync_data()?;
    Ok(written)
}

fn is_zero(page: &[u8]) -> bool {
    page.iter().all(|byte| *byte == 0)
}

/// Reads RAM that is still all zeros.
pub(crate) fn read(ram: &GuestRam, layout: &MemoryLayout, file: &File) -> io::Result<()> {
    let found = file.metadata()?;
    if !found.is_file() || found.len() != layout.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "it has {} bytes, and the machine's memory {}",
                found.len(),
                layout.len()
            ),
        ));
    }
    let mut buffer = vec![0; CHUNK];
    for (address, offset, len) in pieces(layout) {
        let bytes = buffer.get_mut(..len).unwrap_or_default();
        file.read_exact_at(bytes, offset)?;
        for (number, page) in bytes.chunks(PAGE).enumerate() {
            if !is_zero(page) {
                let place = GuestAddress(address.0 + (number * PAGE) as u64);
                ram.write_slice(page, place).map_err(failed)?;
            }
        }
    }
    Ok(())
}
