//! File I/O straight on guest memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{GuestMemoryBackend, VolatileSlice};

use super::{Buffer, GuestRam, QueueError};

/// What to do with the buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the file to guest memory.
    Read,
    /// From guest memory to the file.
    Write,
}

/// Buffers of one system call (IOV_MAX of the kernel). More go in several calls.
pub(crate) const BATCH: usize = 1024;

/// A frame that was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    /// Its length in bytes.
    pub(crate) len: usize,
    /// Whether the buffers have all of it.
    pub(crate) fits: bool,
}

/// The place of guest buffers in this process, ready for the kernel; used again and again, so that
/// nothing is allocated for a request.
#[derive(Debug, Default)]
pub(crate) struct Vectors(Vec<libc::iovec>);

// SAFETY: the addresses point into guest memory, which any thread may use.
unsafe impl Send for Vectors {}

impl Vectors {
    /// Replaces the content by these buffers, which have been checked against `ram`.
    ///
    /// # Errors
    /// When a buffer is not RAM.
    pub(crate) fn set(&mut self, ram: &GuestRam, buffers: &[Buffer]) -> Result<(), QueueError> {
        self.0.clear();
        buffers.iter().try_for_each(|buffer| self.add(ram, *buffer))
    }

    /// Adds a buffer.
    ///
    /// # Errors
    /// When it is not RAM.
    pub(crate) fn add(&mut self, ram: &GuestRam, buffer: Buffer) -> Result<(), QueueError> {
        if buffer.len == 0 {
            // It may be nowhere, also because all of it was used: it might end where RAM does.
            self.0.push(libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            });
            return Ok(());
        }
        let slice = ram.get_slice(buffer.address, buffer.len as usize)?;
        self.0.push(libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        });
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes buffers off the front.
    pub(crate) fn remove_first(&mut self, count: usize) {
        self.0.drain(..count.min(self.0.len()));
    }

    /// Reads a frame, of which what the buffers have no room for goes to `spare`: so its length is known.
    ///
    /// # Errors
    /// That of the system call.
    pub(crate) fn read_frame(&mut self, fd: BorrowedFd<'_>, spare: &mut [u8]) -> io::Result<Frame> {
        let used = self.0.len().min(BATCH - 1);
        let rest = libc::iovec {
            iov_base: spare.as_mut_ptr().cast(),
            iov_len: spare.len(),
        };
        let displaced = self.0.get(used).copied();
        match self.0.get_mut(used) {
            Some(vector) => *vector = rest,
            None => self.0.push(rest),
        }
        let count = libc::c_int::try_from(used + 1).map_err(io::Error::other)?;
        // SAFETY: as for `move_some`, and `spare` is borrowed for the call.
        let result = moved(unsafe { libc::readv(fd.as_raw_fd(), self.0.as_ptr(), count) });
        match (self.0.get_mut(used), displaced) {
            (Some(vector), Some(displaced)) => *vector = displaced,
            _ => self.0.truncate(used),
        }
        let room = self
            .0
            .iter()
            .take(used)
            .map(|vector| vector.iov_len)
            .sum::<usize>();
        let len = result?;
        Ok(Frame {
            len,
            fits: len <= room,
        })
    }

    /// Writes once to a descriptor without places, `first` and then what the buffers have; gives the number of bytes.
    ///
    /// # Errors
    /// That of the system call.
    pub(crate) fn write_behind(&mut self, first: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
        if first.is_empty() {
            return self.write(fd);
        }
        let empty = self.0.iter().take_while(|vector| vector.iov_len == 0);
        self.remove_first(empty.count());
        // One call takes no more; no driver cuts a frame into so many pieces.
        if self.0.len() >= BATCH {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let vector = libc::iovec {
            iov_base: first.as_ptr().cast_mut().cast(),
            iov_len: first.len(),
        };
        self.0.insert(0, vector);
        // `first` is borrowed for the call, which only reads it.
        let written = self.write(fd);
        self.0.remove(0);
        written
    }

    fn write(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let count = libc::c_int::try_from(self.0.len().min(BATCH)).map_err(io::Error::other)?;
        // SAFETY: as for `move_some`.
        moved(unsafe { libc::writev(fd.as_raw_fd(), self.0.as_ptr(), count) })
    }

    /// Copies bytes to the beginning of the buffers, as many as fit.
    pub(crate) fn fill(&self, bytes: &[u8]) {
        let mut rest = bytes;
        for vector in &self.0 {
            let (part, behind) = rest.split_at(rest.len().min(vector.iov_len));
            if part.is_empty() && behind.is_empty() {
                return;
            }
            if !part.is_empty() {
                // SAFETY: every vector is a part of the mapping of guest RAM, which the caller keeps; the guest may
                // change it at any time, which is why it is written as volatile memory.
                let memory =
                    unsafe { VolatileSlice::new(vector.iov_base.cast::<u8>(), vector.iov_len) };
                memory.copy_from(part);
            }
            rest = behind;
        }
    }

    /// For the kernel: each is a part of guest memory.
    pub(crate) fn as_slice(&self) -> &[libc::iovec] {
        &self.0
    }

    /// Whether every part begins and ends at a multiple of `alignment` in memory.
    pub(crate) fn is_aligned(&self, alignment: usize) -> bool {
        self.0.iter().all(|vector| {
            vector.iov_base.addr().is_multiple_of(alignment)
                && vector.iov_len.is_multiple_of(alignment)
        })
    }

    /// Moves all bytes but the first `done` between guest memory and a file, where the whole begins
    /// at `offset`. Gives how many have their place then, the first ones included: fewer than all when the
    /// file ends.
    ///
    /// # Errors
    /// That of the system call.
    pub(crate) fn transfer(
        &mut self,
        file: &File,
        offset: u64,
        done: usize,
        direction: Direction,
    ) -> io::Result<usize> {
        let (mut rest, mut offset, mut all, mut done) = (&mut self.0[..], offset, 0, done);
        loop {
            advance(rest, done);
            offset += done as u64;
            all += done;
            while let [libc::iovec { iov_len: 0, .. }, ..] = rest {
                rest = rest.split_first_mut().map_or(&mut [], |(_, rest)| rest);
            }
            if rest.is_empty() {
                return Ok(all);
            }
            done = match move_some(file, rest, offset, direction) {
                Ok(0) => return Ok(all),
                Ok(moved) => moved,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
        }
    }
}

/// One system call.
fn move_some(
    file: &File,
    vectors: &[libc::iovec],
    offset: u64,
    direction: Direction,
) -> io::Result<usize> {
    let position = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let vectors = vectors.get(..BATCH).unwrap_or(vectors);
    let count = libc::c_int::try_from(vectors.len()).map_err(io::Error::other)?;
    let fd = file.as_raw_fd();
    // SAFETY: every vector is a part of the mapping of guest RAM, which the caller keeps, shared
    // with a guest that may change it at any time, which the kernel expects of user memory.
    moved(unsafe {
        match direction {
            Direction::Read => libc::preadv(fd, vectors.as_ptr(), count, position),
            Direction::Write => libc::pwritev(fd, vectors.as_ptr(), count, position),
        }
    })
}

/// What a system call that moves bytes has given.
fn moved(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Takes `moved` bytes off the front.
fn advance(vectors: &mut [libc::iovec], mut moved: usize) {
    for vector in vectors {
        if moved == 0 {
            return;
        }
        let part = moved.min(vector.iov_len);
        // SAFETY: `part` is at most the vector's length.
        vector.iov_base = unsafe { vector.iov_base.cast::<u8>().add(part) }.cast();
        vector.iov_len -= part;
        moved -= part;
    }
}
