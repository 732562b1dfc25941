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
    let mut vectors = vectors(ram, buffers).map_err(io::Error::other)?;
    let mut rest = vectors.as_mut_slice();
    loop {
        while let [libc::iovec { iov_len: 0, .. }, ..] = rest {
            rest = rest.split_first_mut().map_or(&mut [], |(_, rest)| rest);
        }
        if rest.is_empty() {
            return Ok(());
        }
        let position = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let count = libc::c_int::try_from(rest.len()).map_err(io::Error::other)?;
        let fd = file.as_raw_fd();
        // SAFETY: every vector is a part of a mapping that `ram` keeps alive, shared with a guest
        // that may change it at any time, which the kernel expects of user memory.
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

fn vectors(ram: &GuestRam, buffers: &[Buffer]) -> Result<Vec<libc::iovec>, QueueError> {
    buffers
        .iter()
        .map(|buffer| {
            let len = buffer.len as usize;
            let slice = ram.get_slice(buffer.address, len)?;
            Ok(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: len,
            })
        })
        .collect()
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
