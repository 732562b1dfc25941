//! The file or block device of a disk.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, statx};

use super::SECTOR_BYTES;

/// Why a disk cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The file cannot be opened or its size is not known.
    #[error(transparent)]
    Open(#[from] io::Error),
    /// Neither a regular file nor a block device.
    #[error("neither a regular file nor a block device")]
    Kind,
    /// Another program, or another disk of this one, has it open for writing, or this one wants to.
    #[error("it is in use as a disk already")]
    InUse,
    /// No whole block.
    #[error("it has {0} bytes, less than a block of {1}")]
    TooSmall(u64, u64),
    /// The host has none, or forbids it.
    #[error("the host refuses io_uring; engine=sync does without")]
    Uring(#[source] io::Error),
}

/// Opens a file that can be a disk.
pub(super) fn open(path: &Path, read_only: bool, direct: bool) -> Result<File, BlockError> {
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
    let direct = if direct { libc::O_DIRECT } else { 0 };
    let file = File::options()
        .read(true)
        .write(!read_only)
        // A FIFO must not block; a regular file does not care.
        .custom_flags(libc::O_NONBLOCK | direct)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(BlockError::Kind);
    }
    // On file systems that cannot promise not to block, io_uring would refuse with EAGAIN.
    let flags = fcntl_getfl(&file).map_err(io::Error::from)?;
    fcntl_setfl(&file, flags - OFlags::NONBLOCK).map_err(io::Error::from)?;
    Ok(file)
}

/// What direct I/O asks of memory, places and sizes, in bytes. Where the kernel does not say (before
/// 6.1), a page suits every file system.
pub(super) fn direct_alignment(file: &File) -> u32 {
    const PAGE: u32 = 4096;
    let asked = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    let asked = asked.map_or(0, |found| {
        found.stx_dio_mem_align.max(found.stx_dio_offset_align)
    });
    if asked.is_power_of_two() && asked <= PAGE {
        asked.max(SECTOR_BYTES)
    } else {
        PAGE
    }
}
