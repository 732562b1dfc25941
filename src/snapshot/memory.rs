//! The content of RAM in a file: each region at an offset of its own, pages of zeros as holes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use arch::{AddressRange, GuestRam, MachinePlan};
use rustix::fs::{OFlags, fcntl_getfl};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::present::{self, From, Present};

/// What is looked at for zeros at once, in bytes.
const PAGE: usize = 4096;
/// Of what it is looked for at once what has content, in bytes.
const PART: usize = 1 << 30;
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

/// The regions of RAM, with their offsets in the file.
fn regions(layout: &MemoryLayout) -> impl Iterator<Item = (AddressRange, u64)> {
    let mut next = 0;
    layout.regions.iter().map(move |range| {
        let offset = next;
        next += range.len;
        (*range, offset)
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

/// Whether a file is as long as it has to be.
pub(crate) fn check_file(layout: &MemoryLayout, file: &File) -> io::Result<()> {
    let found = file.metadata()?;
    if found.is_file() && found.len() == layout.len() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "it has {} bytes, and the machine's memory {}",
            found.len(),
            layout.len()
        ),
    ))
}

/// Writes RAM to an empty file; gives the bytes that are no holes.
pub(crate) fn write(ram: &GuestRam, layout: &MemoryLayout, file: &File) -> io::Result<u64> {
    file.set_len(layout.len())?;
    let mut writer = Writer {
        file,
        buffer: vec![0; CHUNK],
        written: 0,
    };
    let present = Present::look();
    for (range, offset) in regions(layout) {
        let region = ram.find_region(GuestAddress(range.base));
        let region = region.filter(|region| region.len() == range.len);
        let region = region.ok_or_else(|| io::Error::other("RAM is not the machine's"))?;
        let content = present.of(region)?;
        // The lists of a part are short whatever the guest has touched.
        for start in (0..range.len).step_by(PART) {
            let part = start..(start + PART as u64).min(range.len);
            for run in content.runs(part)? {
                let read = |at: u64, bytes: &mut [u8]| match (run.from, region.file_offset()) {
                    (From::File, Some(place)) => {
                        place.file().read_exact_at(bytes, place.start() + at)
                    }
                    _ => region
                        .read_slice(bytes, MemoryRegionAddress(at))
                        .map_err(failed),
                };
                writer.copy(run.bytes, offset, read)?;
            }
        }
    }
    file.sync_data()?;
    Ok(writer.written)
}

/// What is written to a file.
struct Writer<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// How many bytes.
    written: u64,
}

impl Writer<'_> {
    /// Copies a part of a region whose place in the file is `offset`, but for its zeros.
    fn copy(
        &mut self,
        part: Range<u64>,
        offset: u64,
        read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        for at in part.clone().step_by(CHUNK) {
            let len = usize::try_from(part.end - at).unwrap_or(CHUNK).min(CHUNK);
            let bytes = self.buffer.get_mut(..len).unwrap_or_default();
            read(at, bytes)?;
            let mut place = offset + at;
            let mut rest = &*bytes;
            // Neighbours that are no zeros go together.
            while !rest.is_empty() {
                let zeros = leading(rest, true);
                let (skipped, behind) = rest.split_at(zeros);
                let data = leading(behind, false);
                let (data, behind) = behind.split_at(data);
                place += skipped.len() as u64;
                self.file.write_all_at(data, place)?;
                place += data.len() as u64;
                self.written += data.len() as u64;
                rest = behind;
            }
        }
        Ok(())
    }
}

/// How many bytes the pages at the beginning have that are zeros, or are not.
fn leading(bytes: &[u8], zeros: bool) -> usize {
    let pages = bytes.chunks(PAGE).take_while(|page| is_zero(page) == zeros);
    pages.map(<[u8]>::len).sum()
}

fn is_zero(page: &[u8]) -> bool {
    // By words, which even a build without optimization does in time.
    let (words, rest) = page.as_chunks::<16>();
    let is_zero = |word: &[u8; 16]| u128::from_ne_bytes(*word) == 0;
    words.iter().all(is_zero) && rest.iter().all(|byte| *byte == 0)
}

/// Reads RAM that is still all zeros.
pub(crate) fn read(ram: &GuestRam, layout: &MemoryLayout, file: &File) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    for (range, offset) in regions(layout) {
        for run in present::data(file, offset..offset + range.len)? {
            for at in run.clone().step_by(CHUNK) {
                let len = usize::try_from(run.end - at).unwrap_or(CHUNK).min(CHUNK);
                let bytes = buffer.get_mut(..len).unwrap_or_default();
                file.read_exact_at(bytes, at)?;
                let place = GuestAddress(range.base + (at - offset));
                ram.write_slice(bytes, place).map_err(failed)?;
            }
        }
    }
    Ok(())
}
