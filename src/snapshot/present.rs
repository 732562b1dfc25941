//! Which parts of RAM have content, without touching those that have none.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::mm::MapFlags;
use vm_memory::{FileOffset, GuestMemoryRegion, GuestRegionMmap};

use super::ranges::{Ranges, both, gaps, push, union};
use super::sparse::Data;
use crate::memory::proc_files::ProcFiles;

/// Entries of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst of Linux): the page is in memory, it is
/// swapped out, it is a file's.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE: u64 = 1 << 61;
/// Bytes of an entry, and how many are read at once.
const ENTRY: usize = 8;
const ENTRIES: usize = 4096;

/// Where a part's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// In memory.
    Memory,
    /// In the region's file, and reading it there gives no page to the mapping.
    File,
}

/// Bytes of a region that may be other than zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) bytes: Range<u64>,
    pub(super) from: From,
}

/// What the kernel tells of this process' memory. Where it does not, all of it may have content.
#[derive(Debug)]
pub(super) enum Present {
    /// All of memory may have content: of what is not here another process brings it.
    Anywhere,
    /// The pagemap and the list of mappings, where the kernel has them.
    Told(Option<(File, Vec<u8>)>),
}

impl Present {
    pub(super) fn look(files: &ProcFiles) -> Self {
        Self::Told(files.pagemap().ok().zip(files.maps().ok()))
    }

    /// What it tells of a region, of which `layered` was mapped to other files than its own.
    pub(super) fn of<'a>(
        &'a self,
        region: &'a GuestRegionMmap,
        layered: Ranges,
    ) -> io::Result<Populated<'a>> {
        let flags = MapFlags::from_bits_retain(region.flags().cast_unsigned());
        let Self::Told(told) = self else {
            return Ok(Populated::Unknown);
        };
        Ok(match (region.file_offset(), told) {
            (Some(place), _) if flags.contains(MapFlags::SHARED) => Populated::File(place),
            (_, None) => Populated::Unknown,
            (None, Some((pagemap, _))) => Populated::Memory(pagemap, region),
            (Some(place), Some((pagemap, maps))) => {
                if place.file().metadata()?.len() < place.start() + region.len() {
                    return Err(io::Error::other(
                        "the file that memory was restored from was cut",
                    ));
                }
                let start = region.as_ptr().addr() as u64;
                Populated::Above(Above {
                    pagemap,
                    region,
                    place,
                    files: files(maps, start, region.len()),
                    layered,
                })
            }
        })
    }
}

/// Where those pages of a region are that may be other than zeros.
#[derive(Debug)]
pub(super) enum Populated<'a> {
    /// Anywhere in memory, as far as is known.
    Unknown,
    /// In the pages that the process has.
    Memory(&'a File, &'a GuestRegionMmap),
    /// In its file.
    File(&'a FileOffset),
    /// In pages that were written to since, the rest in files.
    Above(Above<'a>),
}

/// A region that is mapped to files.
#[derive(Debug)]
pub(super) struct Above<'a> {
    pagemap: &'a File,
    region: &'a GuestRegionMmap,
    place: &'a FileOffset,
    /// All but what was given back since, which has memory of its own.
    files: Ranges,
    /// What another file than the region's has.
    layered: Ranges,
}

impl Above<'_> {
    fn runs(&self, part: Range<u64>) -> io::Result<Vec<Run>> {
        let data = both(of_file(self.place, &part)?.into_iter(), &self.files);
        let own = private(self.pagemap, self.region, &part)?;
        // The mapping shows what other files have.
        let layered = both(std::iter::once(part), &self.layered);
        Ok(over(data.into_iter(), union(own, layered)))
    }

    /// What is not as it was in the files: what was written, and what was given back.
    pub(super) fn changed(&self) -> io::Result<Ranges> {
        let len = self.region.len();
        let own = private(self.pagemap, self.region, &(0..len))?;
        Ok(union(own, gaps(&self.files, len)))
    }
}

impl Populated<'_> {
    /// The runs of a part that have content, in their order; between them are zeros.
    pub(super) fn runs(&self, part: Range<u64>) -> io::Result<Vec<Run>> {
        let run = |from| move |bytes| Run { bytes, from };
        Ok(match self {
            Self::Unknown => vec![run(From::Memory)(part)],
            Self::Memory(pagemap, region) => {
                let own = private(pagemap, region, &part)?;
                own.into_iter().map(run(From::Memory)).collect()
            }
            Self::File(place) => {
                let data = of_file(place, &part)?;
                data.into_iter().map(run(From::File)).collect()
            }
            Self::Above(above) => above.runs(part)?,
        })
    }
}

/// The data in a part of a region's file, by the region's bytes.
fn of_file(place: &FileOffset, part: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let start = place.start();
    let data = Data::of(place.file(), start + part.start..start + part.end);
    let by_region = |run: io::Result<Range<u64>>| run.map(|run| run.start - start..run.end - start);
    data.map(by_region).collect()
}

/// The parts of a region that are mapped to a file, as /proc/PID/maps tells (proc_pid_maps(5)).
fn files(maps: &[u8], start: u64, len: u64) -> Ranges {
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let file = |line: &[u8]| {
        // The path comes last, and has to be none of ours.
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_ascii_whitespace();
        let (first, end) = words.next()?.split_once('-')?;
        let is_file = words.nth(3)? != "0";
        let first = number(first)?.saturating_sub(start);
        let end = number(end)?.saturating_sub(start).min(len);
        (is_file && first < end).then_some(first..end)
    };
    let mut files = Vec::new();
    let lines = maps.split(|byte| *byte == b'\n');
    lines
        .filter_map(file)
        .for_each(|range| push(&mut files, range));
    files
}

/// Runs of a file, with those of memory above them.
fn over(data: impl Iterator<Item = Range<u64>>, memory: Vec<Range<u64>>) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut above = memory.into_iter().peekable();
    let mut put = |bytes: Range<u64>, from| {
        if !bytes.is_empty() {
            runs.push(Run { bytes, from });
        }
    };
    // The end of the last one.
    let mut covered = 0;
    for run in data {
        // Those that begin before its end.
        while let Some(memory) = above.next_if(|memory| memory.start < run.end) {
            put(run.start.max(covered)..memory.start, From::File);
            covered = memory.end;
            put(memory, From::Memory);
        }
        put(run.start.max(covered)..run.end, From::File);
    }
    above.for_each(|memory| put(memory, From::Memory));
    runs
}

/// Pages of a part of a mapping that are its own: in memory or swapped out.
fn private(pagemap: &File, region: &GuestRegionMmap, part: &Range<u64>) -> io::Result<Ranges> {
    let page = rustix::param::page_size() as u64;
    let first = region.as_ptr().addr() as u64 / page;
    let (begin, end) = (part.start / page, part.end.div_ceil(page));
    let mut runs = Vec::new();
    let entries = |begin| usize::try_from(end - begin).map_or(ENTRIES, |left| left.min(ENTRIES));
    let mut buffer = vec![0; ENTRY * entries(begin)];
    for begin in (begin..end).step_by(ENTRIES) {
        let len = entries(begin);
        let bytes = buffer.get_mut(..ENTRY * len).unwrap_or_default();
        pagemap.read_exact_at(bytes, (first + begin) * ENTRY as u64)?;
        let (entries, _) = bytes.as_chunks::<ENTRY>();
        for (number, entry) in (begin..).zip(entries) {
            let entry = u64::from_ne_bytes(*entry);
            if entry & (PRESENT | SWAPPED) == 0 || entry & FILE != 0 {
                continue;
            }
            let bytes = (number * page).max(part.start)..((number + 1) * page).min(part.end);
            push(&mut runs, bytes);
        }
    }
    Ok(runs)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};

    use super::*;

    const PAGE: u64 = 4096;
    const LEN: u64 = 64 * PAGE;

    fn region(file: Option<File>, flags: MapFlags) -> GuestRegionMmap {
        let anonymous = MapFlags::from_bits_retain(libc::MAP_ANONYMOUS.cast_unsigned());
        let flags = if file.is_none() {
            flags | anonymous
        } else {
            flags
        };
        let mut builder = MmapRegionBuilder::new(LEN.try_into().unwrap())
            .with_mmap_prot(3)
            .with_mmap_flags(flags.bits().cast_signed());
        if let Some(file) = file {
            builder = builder.with_file_offset(FileOffset::new(file, 0));
        }
        GuestRegionMmap::new(builder.build().unwrap(), GuestAddress(0)).unwrap()
    }

    fn touch(region: &GuestRegionMmap, page: u64) {
        let address = MemoryRegionAddress(page * PAGE);
        region.write_obj(1_u8, address).unwrap();
    }

    fn all(region: &GuestRegionMmap) -> Vec<Run> {
        Present::look(&ProcFiles::open())
            .of(region, vec![])
            .unwrap()
            .runs(0..LEN)
            .unwrap()
    }

    fn pages(runs: &[Run]) -> Vec<(u64, u64, From)> {
        let pages = |run: &Run| (run.bytes.start / PAGE, run.bytes.end / PAGE, run.from);
        runs.iter().map(pages).collect()
    }

    /// A file with data in pages 8 to 16 and 32 to 40.
    fn sparse() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN).unwrap();
        for start in [8, 32] {
            file.write_all_at(&[7; 8 * 4096], start * PAGE).unwrap();
        }
        file
    }

    #[test]
    fn untouched_memory_has_no_content() {
        let region = region(None, MapFlags::PRIVATE);
        assert_eq!(all(&region), []);
        for page in [3, 4, 63] {
            touch(&region, page);
        }
        let expected = [(3, 5, From::Memory), (63, 64, From::Memory)];
        assert_eq!(pages(&all(&region)), expected);
    }

    #[test]
    fn a_shared_file_has_what_it_has() {
        let region = region(Some(sparse()), MapFlags::SHARED);
        touch(&region, 0);
        let expected = [(0, 1), (8, 16), (32, 40)].map(|(start, end)| (start, end, From::File));
        assert_eq!(pages(&all(&region)), expected);
    }

    #[test]
    fn what_was_written_stands_above_a_private_file() {
        let region = region(Some(sparse()), MapFlags::PRIVATE);
        let before = [(8, 16, From::File), (32, 40, From::File)];
        assert_eq!(pages(&all(&region)), before);
        // Reading makes nothing private.
        for page in 0..64 {
            let _: u8 = region.read_obj(MemoryRegionAddress(page * PAGE)).unwrap();
        }
        assert_eq!(pages(&all(&region)), before);
        for page in [2, 7, 8, 10, 15, 16, 50] {
            touch(&region, page);
        }
        let expected = [
            (2, 3, From::Memory),
            (7, 9, From::Memory),
            (9, 10, From::File),
            (10, 11, From::Memory),
            (11, 15, From::File),
            (15, 17, From::Memory),
            (32, 40, From::File),
            (50, 51, From::Memory),
        ];
        assert_eq!(pages(&all(&region)), expected);
    }

    /// What was given back has fresh memory in its place.
    #[test]
    fn r32_a_files_content_does_not_come_back() {
        use rustix::mm::{ProtFlags, mmap_anonymous};
        let region = region(Some(sparse()), MapFlags::PRIVATE);
        touch(&region, 10);
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        let place = region.as_ptr().wrapping_add(9 * 4096).cast();
        // SAFETY: pages of the region, which stays mapped.
        unsafe { mmap_anonymous(place, 3 * 4096, ProtFlags::READ | ProtFlags::WRITE, flags) }
            .unwrap();
        touch(&region, 11);
        let expected = [
            (8, 9, From::File),
            (11, 12, From::Memory),
            (12, 16, From::File),
            (32, 40, From::File),
        ];
        assert_eq!(pages(&all(&region)), expected);
    }

    #[test]
    fn parts_of_a_region_are_parts_of_its_runs() {
        let region = region(Some(sparse()), MapFlags::PRIVATE);
        touch(&region, 10);
        let present = Present::look(&ProcFiles::open());
        let part = present
            .of(&region, vec![])
            .unwrap()
            .runs(9 * PAGE..33 * PAGE)
            .unwrap();
        let expected = [
            (9, 10, From::File),
            (10, 11, From::Memory),
            (11, 16, From::File),
            (32, 33, From::File),
        ];
        assert_eq!(pages(&part), expected);
        let nothing = Present::Told(None);
        let blind = nothing.of(&region, vec![]).unwrap().runs(0..PAGE).unwrap();
        assert_eq!(pages(&blind), [(0, 1, From::Memory)]);
    }

    #[test]
    fn a_file_that_was_cut_is_not_taken_for_zeros() {
        let file = sparse();
        let region = region(Some(file.try_clone().unwrap()), MapFlags::PRIVATE);
        file.set_len(20 * PAGE).unwrap();
        assert!(
            Present::look(&ProcFiles::open())
                .of(&region, vec![])
                .is_err()
        );
    }

    #[test]
    fn mappings_are_told_by_their_inodes() {
        let maps = b"1000-3000 rw-p 00000000 00:00 0 \n\
                    3000-5000 rw-p 00001000 08:01 77 /a b\xff\n\
                    5000-6000 rw-p 00000000 00:00 0 [heap]\nrubbish\n\
                    6000-9000 rw-s 00000000 00:05 1 /memfd:x (deleted)\n";
        let found = files(maps, 0x2000, 0x6000);
        assert_eq!(found, [0x1000..0x3000, 0x4000..0x6000]);
        let data = [0..0x1800, 0x2800..0x4001];
        let expected = [0x1000..0x1800, 0x2800..0x3000, 0x4000..0x4001];
        assert_eq!(both(data.into_iter(), &found), expected);
    }

    #[test]
    fn runs_of_memory_cover_those_of_the_file() {
        let merged = over([10..20, 30..40].into_iter(), vec![0..5, 12..35, 38..50]);
        let expected = [
            (0..5, From::Memory),
            (10..12, From::File),
            (12..35, From::Memory),
            (35..38, From::File),
            (38..50, From::Memory),
        ];
        let expected = expected.map(|(bytes, from)| Run { bytes, from });
        assert_eq!(merged, expected);
    }
}
