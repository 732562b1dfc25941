//! The content of RAM in files, pages of zeros as holes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use arch::{AddressRange, GuestRam};
use rustix::fs::{OFlags, fcntl_getfl};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

use super::layout::MemoryLayout;
use super::present::{From, Present};
use super::progress::Progress;
use super::ranges::{Ranges, push, total};
use super::sparse::{CHUNK, Data, Writer};
use crate::memory::bring;
use crate::memory::image::{MemoryImage, Part};
use crate::memory::proc_files::ProcFiles;

/// Of what it is looked for at once what has content, in bytes.
const PART: usize = 1 << 30;
/// The region of RAM at a range.
pub(super) fn find(ram: &GuestRam, range: AddressRange) -> io::Result<&GuestRegionMmap> {
    let region = ram.find_region(GuestAddress(range.base));
    let region = region.filter(|region| region.len() == range.len);
    region.ok_or_else(|| io::Error::other("RAM is not the machine's"))
}

fn failed(error: vm_memory::GuestMemoryError) -> io::Error {
    io::Error::other(error)
}

/// What a file has that RAM is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    Nothing,
    /// Nothing, or as many bytes as RAM.
    Memory(u64),
    Anything,
}

/// Whether files are regular ones without content, which are written where we say: nothing hangs, and nothing is
/// overwritten. Only the second one, that of RAM, may have what `memory` says.
pub(crate) fn check_files(files: &[&File], memory: Before) -> io::Result<()> {
    let refused = |cause: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, cause));
    let mut known = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let found = file.metadata()?;
        let before = if number == 1 { memory } else { Before::Nothing };
        let (may_have, cause) = match before {
            Before::Nothing => (found.len() == 0, "a file for it is no empty regular file"),
            Before::Memory(len) => (
                [0, len].contains(&found.len()),
                "the file for its memory is no regular file, empty or as long as that",
            ),
            Before::Anything => (true, "the file for its memory is no regular file"),
        };
        if !found.is_file() || !may_have {
            return refused(cause);
        }
        if fcntl_getfl(file)?.contains(OFlags::APPEND) {
            return refused("a file for it is open for appending");
        }
        let identity = (found.dev(), found.ino());
        if known.contains(&identity) {
            return refused("two files for it are the same one");
        }
        known.push(identity);
    }
    Ok(())
}

/// The device and inode of a file.
pub(crate) fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|found| (found.dev(), found.ino()))
}

/// Whether the file for RAM is none that the machine has open itself, each with what it is of the machine.
pub(super) fn check_apart<'a>(
    file: &File,
    others: impl IntoIterator<Item = (&'a str, (u64, u64))>,
) -> io::Result<()> {
    let own = identity(file)?;
    match others.into_iter().find(|(_, other)| *other == own) {
        Some((what, _)) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the file for its memory is {what}; name another file"),
        )),
        None => Ok(()),
    }
}

/// The content of RAM, and what is known of where it is.
#[derive(Debug)]
pub(super) struct Content<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) layout: &'a MemoryLayout,
    /// What RAM had at first, of a machine whose memory is mapped to files.
    pub(super) origin: Option<&'a MemoryImage>,
    pub(super) present: &'a Present,
}

impl Content<'_> {
    /// Writes these runs of RAM to an empty file, one behind the other; gives the bytes that are no holes.
    pub(super) fn write(
        &self,
        runs: &[Range<u64>],
        file: &File,
        progress: &Progress,
    ) -> io::Result<u64> {
        file.set_len(total(runs))?;
        let mut writer = Writer::new(file, progress, 0);
        // Where the file has the run.
        let mut place = 0;
        for run in runs {
            let start = run.start;
            self.each(run, |part, content| match content {
                Some(read) => writer.copy(part.clone(), place + (part.start - start), read),
                None => Ok(()),
            })?;
            place += run.end - run.start;
        }
        file.sync_data()?;
        Ok(writer.written)
    }

    /// Writes these runs of RAM to their places in a file, zeros too; gives the bytes. What else an empty file has are
    /// holes.
    pub(super) fn write_in_place(
        &self,
        runs: &[Range<u64>],
        file: &File,
        progress: &Progress,
    ) -> io::Result<u64> {
        file.set_len(self.layout.len())?;
        let mut writer = Writer::new(file, progress, 0);
        for run in runs {
            self.each(run, |part, content| match content {
                Some(read) => writer.copy_all(part.clone(), part.start, read),
                None => writer.copy_all(part.clone(), part.start, |_, bytes| {
                    bytes.fill(0);
                    Ok(())
                }),
            })?;
        }
        file.sync_data()?;
        Ok(writer.written)
    }

    /// Calls `take` for each part of a run of RAM, in their order, with what reads it; without that it is zeros.
    fn each(
        &self,
        run: &Range<u64>,
        mut take: impl FnMut(Range<u64>, Option<&Read<'_>>) -> io::Result<()>,
    ) -> io::Result<()> {
        for (range, offset) in self.layout.regions() {
            let inside = run.start.max(offset)..run.end.min(offset + range.len);
            if inside.is_empty() {
                continue;
            }
            let region = find(self.ram, range)?;
            let populated = self
                .present
                .of(region, layered(self.origin, offset, range.len))?;
            // The lists of a part are short whatever the guest has touched.
            for start in inside.clone().step_by(PART) {
                let end = (start + PART as u64).min(inside.end);
                // What was looked at.
                let mut done = start;
                for found in populated.runs(start - offset..end - offset)? {
                    let read =
                        |at: u64, bytes: &mut [u8]| read_at(region, found.from, at - offset, bytes);
                    let part = offset + found.bytes.start..offset + found.bytes.end;
                    if done < part.start {
                        take(done..part.start, None)?;
                    }
                    done = part.end;
                    take(part, Some(&read))?;
                }
                if done < end {
                    take(done..end, None)?;
                }
            }
        }
        Ok(())
    }
}

/// Reads a run of a region.
fn read_at(region: &GuestRegionMmap, from: From, at: u64, bytes: &mut [u8]) -> io::Result<()> {
    match (from, region.file_offset()) {
        (From::File, Some(place)) => place.file().read_exact_at(bytes, place.start() + at),
        _ => region
            .read_slice(bytes, MemoryRegionAddress(at))
            .map_err(failed),
    }
}

/// Copies RAM that is mapped to no other files than its own to RAM of the same regions that is still all zeros.
pub(crate) fn copy(ram: &GuestRam, to: &GuestRam, files: &ProcFiles) -> io::Result<()> {
    let present = Present::look(files);
    let mut buffer = vec![0; CHUNK];
    for region in ram.iter() {
        let populated = present.of(region, Ranges::new())?;
        for start in (0..region.len()).step_by(PART) {
            let end = (start + PART as u64).min(region.len());
            for found in populated.runs(start..end)? {
                for at in found.bytes.clone().step_by(CHUNK) {
                    let len = usize::try_from(found.bytes.end - at).unwrap_or(CHUNK);
                    let bytes = buffer.get_mut(..len.min(CHUNK)).unwrap_or_default();
                    read_at(region, found.from, at, bytes)?;
                    if bytes.iter().any(|byte| *byte != 0) {
                        let place = GuestAddress(region.start_addr().0 + at);
                        to.write_slice(bytes, place).map_err(failed)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Reads bytes from a place on.
type Read<'a> = dyn Fn(u64, &mut [u8]) -> io::Result<()> + 'a;

/// What of a region is mapped to other files than the first one, at least at first.
pub(super) fn layered(origin: Option<&MemoryImage>, offset: u64, len: u64) -> Ranges {
    let parts = origin.iter().flat_map(|origin| &origin.parts);
    let parts = parts.filter(|part| part.file > 0);
    let mut ranges = Vec::new();
    for part in parts.filter_map(|part| part.cut(offset, offset + len)) {
        push(&mut ranges, part.at - offset..part.end() - offset);
    }
    ranges
}

/// Brings all that files have into RAM that is mapped to them.
pub(crate) fn populate(
    ram: &GuestRam,
    layout: &MemoryLayout,
    image: &MemoryImage,
) -> io::Result<()> {
    for (range, offset) in layout.regions() {
        let region = find(ram, range)?;
        let parts = image.parts.iter();
        for part in parts.filter_map(|part| part.cut(offset, offset + range.len)) {
            let (_, runs) = data(image, &part)?;
            let first = part.at - offset;
            for run in runs {
                let run = run?;
                let [start, end] = [run.start, run.end].map(|at| first + (at - part.place));
                bring(region, start..end)?;
            }
        }
    }
    Ok(())
}

/// What has content of a part of RAM, as bytes of its file.
fn data<'a>(image: &'a MemoryImage, part: &Part) -> io::Result<(&'a File, Data<'a>)> {
    let file = image.files.get(part.file);
    let file = file.ok_or_else(|| io::Error::other("a file of memory is missing"))?;
    Ok((file, Data::of(file, part.place..part.place + part.len)))
}

/// Reads RAM that is still all zeros.
pub(crate) fn read(ram: &GuestRam, layout: &MemoryLayout, image: &MemoryImage) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    for (range, offset) in layout.regions() {
        let parts = image.parts.iter();
        for part in parts.filter_map(|part| part.cut(offset, offset + range.len)) {
            let (file, runs) = data(image, &part)?;
            for run in runs {
                let run = run?;
                for at in run.clone().step_by(CHUNK) {
                    let len = usize::try_from(run.end - at).unwrap_or(CHUNK).min(CHUNK);
                    let bytes = buffer.get_mut(..len).unwrap_or_default();
                    file.read_exact_at(bytes, at)?;
                    let inside = part.at - offset + (at - part.place);
                    let place = GuestAddress(range.base + inside);
                    ram.write_slice(bytes, place).map_err(failed)?;
                }
            }
        }
    }
    Ok(())
}

/// Writes the whole of a saved machine's RAM to an empty file; gives the bytes that are no holes.
pub(crate) fn merge(image: &MemoryImage, file: &File) -> io::Result<u64> {
    file.set_len(image.parts.last().map_or(0, Part::end))?;
    let progress = Progress::default();
    let mut writer = Writer::new(file, &progress, 0);
    for part in &image.parts {
        let (from, runs) = data(image, part)?;
        for run in runs {
            let run = run?;
            let place = part.at + (run.start - part.place);
            writer.copy(run, place, |at, bytes| from.read_exact_at(bytes, at))?;
        }
    }
    file.sync_data()?;
    Ok(writer.written)
}
