//! File I/O straight on guest memory: the one place where the devices are unsafe.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::GuestMemoryBackend;

use super::{Buffer, GuestRam, QueueError};

/// What to do with the buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the file to guest memory.
    Read,
    /// From guest memory to the file.
    Write,
}

/// Buffers of one system call. More go in several calls.
const BATCH: usize = 256;

/// Moves all bytes of the buffers between guest memory and a file, from `offset` on. The buffers
/// have been checked against `ram`.
///
/// # Errors
/// That of the system call; `UnexpectedEof` when the file ends early.
pub(crate) fn transfer(
    file: &File,
    ram: &GuestRam,
    buffers: &[Buffer],
    mut offset: u64,
    direction: Direction,
) -> io::Result<()> {
    // On the stack: nothing is allocated for a request.
    let mut space = [EMPTY; BATCH];
    for batch in buffers.chunks(BATCH) {
        for (vector, buffer) in space.iter_mut().zip(batch) {
            *vector = locate(ram, *buffer).map_err(io::Error::other)?;
        }
        let vectors = space.get_mut(..batch.len()).unwrap_or_default();
        offset = transfer_all(file, vectors, offset, direction)?;
    }
    Ok(())
}

const EMPTY: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Where a buffer lies in this process.
fn locate(ram: &GuestRam, buffer: Buffer) -> Result<libc::iovec, QueueError> {
    let slice = ram.get_slice(buffer.address, buffer.len as usize)?;
    Ok(libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    })
}

/// Goes on until every vector, each a part of guest memory, is empty; gives the next offset.
fn transfer_all(
    file: &File,
    mut rest: &mut [libc::iovec],
    mut offset: u64,
    direction: Direction,
) -> io::Result<u64> {
    loop {
        while let [libc::iovec { iov_len: 0, .. }, ..] = rest {
            rest = rest.split_first_mut().map_or(&mut [], |(_, rest)| rest);
        }
        if rest.is_empty() {
            return Ok(offset);
        }
        let position = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let count = libc::c_int::try_from(rest.len()).map_err(io::Error::other)?;
        let fd = file.as_raw_fd();
        // SAFETY: every vector is a part of the mapping of guest RAM, which the caller keeps, shared
        // with a guest that may change it at any time, which the kernel expects of user memory.
        let moved = unsafe {
            match direction {
                Direction::Read => libc::preadv(fd, rest.as_ptr(), count, position),
                Direction::Write => libc::pwritev(fd, rest.as_ptr(), count, position),
            }
        };
        let moved = match usize::try_from(moved) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(moved) => moved,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
        };
        offset += moved as u64;
        advance(rest, moved);
    }
}

/// Takes `moved` bytes off the front.
fn advance(vectors: &mut [libc::iovec], mut moved: usize) {
    for vector in vectors {
        let part = moved.min(vector.iov_len);
        // SAFETY: `part` is at most the vector's length.
        vector.iov_base = unsafe { vector.iov_base.cast::<u8>().add(part) }.cast();
        vector.iov_len -= part;
        moved -= part;
    }
}
