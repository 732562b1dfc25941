//! Files with holes: what of one is data, and data written so that pages of zeros are holes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::progress::Progress;

/// What is looked at for zeros at once, in bytes.
const PAGE: usize = 4096;
/// What is read and written at once, in bytes.
pub(super) const CHUNK: usize = 1 << 20;

/// The runs of data in a part of a file, found one after the other: a file may have any number of them.
#[derive(Debug)]
pub(super) struct Data<'a> {
    file: &'a File,
    /// What was not looked at.
    rest: Range<u64>,
}

impl<'a> Data<'a> {
    pub(super) fn of(file: &'a File, part: Range<u64>) -> Self {
        Self { file, rest: part }
    }

    /// The first run.
    fn first_run(&self) -> io::Result<Option<Range<u64>>> {
        let Range { start: at, end } = self.rest;
        if at >= end {
            return Ok(None);
        }
        let start = match seek(self.file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => return Ok(None),
            // The file system knows of no holes.
            Err(Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        if start >= end {
            return Ok(None);
        }
        let end = match seek(self.file, SeekFrom::Hole(start)) {
            Ok(hole) => hole.clamp(start + 1, end),
            Err(Errno::INVAL) => end,
            Err(error) => return Err(error.into()),
        };
        Ok(Some(start..end))
    }
}

impl Iterator for Data<'_> {
    type Item = io::Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.first_run();
        // Nothing comes behind the last one, or behind an error.
        self.rest.start = match &found {
            Ok(Some(run)) => run.end,
            _ => self.rest.end,
        };
        found.transpose()
    }
}

/// Writes to a file that is all hole.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    file: &'a File,
    progress: &'a Progress,
    /// Where the file begins in what the progress counts.
    base: u64,
    buffer: Vec<u8>,
    /// How many bytes.
    pub(super) written: u64,
}

impl<'a> Writer<'a> {
    pub(super) fn new(file: &'a File, progress: &'a Progress, base: u64) -> Self {
        Self {
            file,
            progress,
            base,
            buffer: vec![0; CHUNK],
            written: 0,
        }
    }

    /// Copies a part of something to a place in the file, but for its zeros.
    pub(super) fn copy(
        &mut self,
        part: Range<u64>,
        place: u64,
        read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.write(part, place, read, false)
    }

    /// The same, with the zeros.
    pub(super) fn copy_all(
        &mut self,
        part: Range<u64>,
        place: u64,
        read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.write(part, place, read, true)
    }

    fn write(
        &mut self,
        part: Range<u64>,
        place: u64,
        read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
        with_zeros: bool,
    ) -> io::Result<()> {
        for at in part.clone().step_by(CHUNK) {
            let len = usize::try_from(part.end - at).unwrap_or(CHUNK).min(CHUNK);
            let bytes = self.buffer.get_mut(..len).unwrap_or_default();
            read(at, bytes)?;
            let mut place = place + (at - part.start);
            self.progress.reach(self.base + place)?;
            let mut rest = &*bytes;
            // Neighbours that are no zeros go together.
            while !rest.is_empty() {
                let zeros = if with_zeros { 0 } else { leading(rest, true) };
                let (skipped, behind) = rest.split_at(zeros);
                let data = if with_zeros {
                    behind.len()
                } else {
                    leading(behind, false)
                };
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A file of 1 TiB with a page of data every 64 KiB of the first 64 MiB.
    #[test]
    fn r29_the_runs_of_a_file_are_found_one_after_the_other() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 40).unwrap();
        let places = (0..1024).map(|number| number << 16);
        for place in places.clone() {
            file.write_all_at(&[1; PAGE], place).unwrap();
        }
        let page = PAGE as u64;
        let mut data = Data::of(&file, 1..1 << 40);
        assert_eq!(data.next().unwrap().unwrap(), 1..page);
        // It has looked no further.
        assert_eq!(data.rest, page..1 << 40);
        let found: Vec<_> = data.map(Result::unwrap).collect();
        let expected: Vec<_> = places.skip(1).map(|place| place..place + page).collect();
        assert_eq!(found, expected);
        assert!(Data::of(&file, 1 << 39..1 << 40).next().is_none());
        assert!(Data::of(&file, 5..5).next().is_none());
    }

    #[test]
    fn what_cannot_be_looked_at_is_an_error_once() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(reader));
        let found: Vec<_> = Data::of(&file, 0..PAGE as u64).collect();
        assert!(matches!(&found[..], [Err(_)]), "{found:?}");
    }
}
