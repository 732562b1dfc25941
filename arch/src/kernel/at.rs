//! A file that is read one piece after the other, at a position of the reader's own: the descriptor's own position belongs
//! to every process that has inherited it, and two that read at once would move it for each other.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

/// Reads a file from its start on, and leaves the position of its descriptor alone.
#[derive(Debug)]
pub struct FileReader<'a> {
    file: &'a File,
    /// In bytes from the start of the file.
    position: u64,
}

impl<'a> FileReader<'a> {
    /// At the start of the file.
    #[must_use]
    pub fn new(file: &'a File) -> Self {
        Self { file, position: 0 }
    }
}

impl Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read_at(buffer, self.position)?;
        self.position = self.position.saturating_add(len as u64);
        Ok(len)
    }
}

impl Seek for FileReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(more) => self.position.checked_add_signed(more),
            SeekFrom::End(more) => self.file.metadata()?.len().checked_add_signed(more),
        };
        // As lseek(2) has it.
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl ReadVolatile for FileReader<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        slice: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let position = libc::off_t::try_from(self.position)
            .map_err(|_| VolatileMemoryError::IOError(io::ErrorKind::InvalidInput.into()))?;
        let guard = slice.ptr_guard_mut();
        // SAFETY: the slice is `len` bytes of memory that is mapped as long as its guard lives, and that only raw
        // pointers lead to. The kernel writes no more than these.
        let read = unsafe {
            let to = guard.as_ptr().cast();
            libc::pread(self.file.as_raw_fd(), to, slice.len(), position)
        };
        let len = usize::try_from(read)
            .map_err(|_| VolatileMemoryError::IOError(io::Error::last_os_error()))?;
        slice.bitmap().mark_dirty(0, len);
        self.position = self.position.saturating_add(len as u64);
        Ok(len)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::GuestRam;

    #[test]
    fn two_readers_of_one_open_file_do_not_move_each_other() {
        let bytes: Vec<u8> = (0..10_000u16)
            .map(|number| number.to_le_bytes()[0])
            .collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let (mut one, mut other) = (FileReader::new(&file), FileReader::new(&file));
        assert_eq!(one.seek(SeekFrom::End(-4000)).unwrap(), 6000);
        let mut start = [0; 100];
        other.read_exact(&mut start).unwrap();
        assert_eq!(start, bytes[..100]);
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        ram.read_exact_volatile_from(GuestAddress(1), &mut one, 3000)
            .unwrap();
        assert_eq!(one.seek(SeekFrom::Current(-1000)).unwrap(), 8000);
        ram.read_exact_volatile_from(GuestAddress(3001), &mut one, 2000)
            .unwrap();
        let mut read = [0; 5000];
        ram.read_slice(&mut read, GuestAddress(1)).unwrap();
        let expected = [&bytes[6000..9000], &bytes[8000..]].concat();
        assert_eq!(read[..], expected[..]);
        // At its end, and beyond.
        assert!(
            ram.read_exact_volatile_from(GuestAddress(0), &mut one, 1)
                .is_err()
        );
        assert!(one.seek(SeekFrom::Current(-20_000)).is_err());
        assert_eq!(one.seek(SeekFrom::Start(u64::MAX)).unwrap(), u64::MAX);
        assert!(
            ram.read_exact_volatile_from(GuestAddress(0), &mut one, 1)
                .is_err()
        );
        assert_eq!(file.stream_position().unwrap(), 10_000);
    }
}
