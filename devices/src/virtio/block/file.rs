//! The file or block device of a disk.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, FlockOperation, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, flock, ioctl_blksszget,
    statx,
};
use rustix::io::Errno;

use super::{SECTOR, SECTOR_BYTES};
use crate::config::BlkConfig;

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
    /// No byte.
    #[error("it is empty")]
    Empty,
    /// The host has none, or forbids it.
    #[error("the host refuses io_uring; engine=sync does without")]
    Uring(#[source] io::Error),
}

/// A disk's size and blocks, which the image or the device has, whatever the host's I/O asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes of the file.
    pub(super) size: u64,
    /// Sectors of 512 bytes: the file's, the last one rounded up.
    pub(super) sectors: u64,
    /// Bytes of a logical block.
    pub(super) block: u32,
    /// Bytes of the blocks that are best for I/O.
    pub(super) best: u32,
}

/// The files of a disk, opened by its path once.
#[derive(Debug)]
pub(super) struct Opened {
    /// For requests.
    pub(super) file: File,
    /// With direct I/O, for requests that are not aligned for it: this one has the lock.
    pub(super) buffered: Option<File>,
    /// What the first asks of memory, places and sizes, in bytes.
    pub(super) alignment: u32,
    pub(super) shape: Shape,
}

impl Opened {
    pub(super) fn new(config: &BlkConfig) -> Result<Self, BlockError> {
        let file = open(&config.path, config.read_only)?;
        let shape = shape(&file)?;
        if shape.sectors == 0 {
            return Err(BlockError::Empty);
        }
        if !shape.size.is_multiple_of(SECTOR) {
            log::warn!(
                "the disk {} has {} bytes, which is no whole number of sectors: the rest of the last one \
                 reads as zeros, and writing to it makes the file longer",
                config.path.display(),
                shape.size
            );
        }
        if !config.direct {
            return Ok(Self {
                file,
                buffered: None,
                alignment: SECTOR_BYTES,
                shape,
            });
        }
        let direct = again(&file, config.read_only)?;
        Ok(Self {
            alignment: direct_alignment(&direct),
            file: direct,
            buffered: Some(file),
            shape,
        })
    }

    /// One writer, or any number of readers.
    pub(super) fn lock(self, config: &BlkConfig) -> Result<Self, BlockError> {
        let operation = if config.read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        let file = self.buffered.as_ref().unwrap_or(&self.file);
        let end = Instant::now() + PATIENCE;
        loop {
            match flock(file, operation) {
                Ok(()) => return Ok(self),
                // A tool that looks at a new device holds it for a moment (udev).
                Err(Errno::WOULDBLOCK) if Instant::now() < end => thread::sleep(PATIENCE / 20),
                Err(Errno::WOULDBLOCK) => return Err(BlockError::InUse),
                Err(Errno::INTR) => {}
                Err(error) => return Err(BlockError::Open(error.into())),
            }
        }
    }
}

/// How long a lock of somebody else is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

fn shape(mut file: &File) -> Result<Shape, BlockError> {
    let metadata = file.metadata()?;
    // The size of a block device is not in its metadata.
    let size = file.seek(SeekFrom::End(0))?;
    let block = if metadata.file_type().is_block_device() {
        ioctl_blksszget(file).map_err(io::Error::from)?
    } else {
        SECTOR_BYTES
    };
    let block = if block.is_power_of_two() {
        block.max(SECTOR_BYTES)
    } else {
        SECTOR_BYTES
    };
    Ok(Shape {
        size,
        sectors: size.div_ceil(SECTOR),
        block,
        best: u32::try_from(metadata.blksize()).unwrap_or(block),
    })
}

/// Opens a file that can be a disk.
fn open(path: &Path, read_only: bool) -> Result<File, BlockError> {
    let file = File::options()
        .read(true)
        .write(!read_only)
        // A FIFO must not block; a regular file does not care.
        .custom_flags(libc::O_NONBLOCK)
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

/// The same file for direct I/O, whatever its path means by now.
fn again(file: &File, read_only: bool) -> io::Result<File> {
    File::options()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_DIRECT)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
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
