//! The file or block device of a disk.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, MemfdFlags, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, ioctl_blksszget,
    memfd_create, statx,
};

use super::error::{BlockError, READ_ONLY_DEVICE, check_kind, in_use};
use super::lock::{Access, Outcome, look, mark, try_lock};
use super::request::{SECTOR, SECTOR_BYTES};
use super::sys::is_read_only_device;
use crate::config::BlkConfig;
use crate::descriptor::{self, DiskFile};
use crate::sealed::is_sealed;

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

impl Shape {
    /// For the rest of a last sector that the file has only a part of.
    pub(super) fn zeros(&self) -> io::Result<Option<File>> {
        (self.sectors * SECTOR > self.size)
            .then(|| {
                let file = File::from(memfd_create("zeros", MemfdFlags::CLOEXEC)?);
                file.set_len(SECTOR)?;
                Ok(file)
            })
            .transpose()
    }
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
        Self::of(open(config)?.into(), config)
    }

    /// An open file; the configuration has its name, and how it is used.
    pub(super) fn of(file: DiskFile, config: &BlkConfig) -> Result<Self, BlockError> {
        let DiskFile { file, again } = file;
        check(&file, config.read_only)?;
        let shape = shape(&file)?;
        if shape.sectors == 0 {
            log::info!(
                "the disk {} has no sectors, until another file is put behind it",
                config.path.display()
            );
        }
        if !shape.size.is_multiple_of(SECTOR) {
            let rule = if config.read_only {
                ""
            } else {
                ", and writing to it makes the file longer, up to the whole sector"
            };
            log::warn!(
                "the disk {} has {} bytes, which is no whole number of sectors (512 bytes): the rest \
                 of the last one reads as zeros{rule}",
                config.path.display(),
                shape.size
            );
        }
        let direct = match again {
            _ if !config.direct => None,
            Some(again) => Some(direct(again, &file, config)?),
            None if is_sealed() => {
                log::warn!(
                    "the disk {} is used without direct I/O: that takes the file opened twice, it came open once, and \
                     nothing can be opened inside a sandbox (sandbox=off has none)",
                    config.path.display()
                );
                None
            }
            None => {
                let direct = open_again(&file, config.read_only);
                Some(direct.map_err(|error| BlockError::of_open(config, error))?)
            }
        };
        let Some(direct) = direct else {
            return Ok(Self {
                file,
                buffered: None,
                alignment: SECTOR_BYTES,
                shape,
            });
        };
        Ok(Self {
            alignment: direct_alignment(&direct),
            file: direct,
            buffered: Some(file),
            shape,
        })
    }

    /// Whether somebody else has the disk in a way that contradicts.
    pub(super) fn in_use(self, config: &BlkConfig) -> Result<Option<BlockError>, BlockError> {
        // It has the locks of whoever passed it on, and letting go would let go theirs.
        if !config.lock || descriptor::of_path(&config.path).is_some() {
            return Ok(None);
        }
        let access = Access::of(config);
        let file = self.buffered.as_ref().unwrap_or(&self.file);
        Ok(match look(file, access)? {
            Outcome::Refused => Some(in_use(file, config, access)),
            Outcome::Locked | Outcome::Unknown => None,
        })
    }

    /// One writer, or any number of readers; without locks, anybody.
    pub(super) fn lock(self, config: &BlkConfig) -> Result<Self, BlockError> {
        let access = Access::of(config);
        let file = self.buffered.as_ref().unwrap_or(&self.file);
        if !config.lock {
            if mark(file, access)? {
                log::warn!(
                    "the disk {} is written by somebody else too, from which lock=off does not keep them: a file \
                     system on it does not survive two writers",
                    config.path.display()
                );
            }
            return Ok(self);
        }
        let end = Instant::now() + PATIENCE;
        loop {
            match try_lock(file, access)? {
                Outcome::Locked => return Ok(self),
                // A tool that looks at a new device holds it for a moment (udev).
                Outcome::Refused if Instant::now() < end => thread::sleep(PATIENCE / 20),
                Outcome::Refused => return Err(in_use(file, config, access)),
                Outcome::Unknown => {
                    log::warn!(
                        "the file system of the disk {} lacks locks: nothing keeps other programs from \
                         writing to it",
                        config.path.display()
                    );
                    return Ok(self);
                }
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
fn open(config: &BlkConfig) -> Result<File, BlockError> {
    let mut options = File::options();
    options
        .read(true)
        .write(!config.read_only)
        // A FIFO must not block; a regular file does not care.
        .custom_flags(libc::O_NONBLOCK);
    let file = descriptor::open(&config.path, &options)
        .map_err(|error| BlockError::of_open(config, error))?;
    Ok(file)
}

/// Finds out whether an open file can be a disk.
fn check(file: &File, read_only: bool) -> Result<(), BlockError> {
    let kind = file.metadata()?.file_type();
    check_kind(kind)?;
    let flags = fcntl_getfl(file).map_err(io::Error::from)?;
    match flags & OFlags::RWMODE {
        OFlags::RDWR => {}
        OFlags::RDONLY if read_only => {}
        _ => return Err(BlockError::NotOpenFor { read_only }),
    }
    if kind.is_block_device() && !read_only && is_read_only_device(file) {
        return Err(READ_ONLY_DEVICE);
    }
    // On file systems that cannot promise not to block, io_uring would refuse with EAGAIN.
    fcntl_setfl(file, flags - OFlags::NONBLOCK).map_err(io::Error::from)?;
    Ok(())
}

/// The same file for direct I/O, whatever its path means by now.
fn open_again(file: &File, read_only: bool) -> io::Result<File> {
    File::options()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_DIRECT)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The same file for direct I/O, which somebody else has opened once more.
fn direct(again: File, file: &File, config: &BlkConfig) -> Result<File, BlockError> {
    check(&again, config.read_only)?;
    let [own, other] = [file.metadata()?, again.metadata()?];
    if (own.dev(), own.ino()) != (other.dev(), other.ino()) {
        return Err(BlockError::Another);
    }
    let flags = |file| fcntl_getfl(file).map_err(io::Error::from);
    fcntl_setfl(&again, flags(&again)? | OFlags::DIRECT)
        .map_err(|errno| BlockError::of_open(config, errno.into()))?;
    // Requests that are not aligned take this one.
    if flags(file)?.contains(OFlags::DIRECT) {
        return Err(BlockError::OpenedOnce);
    }
    Ok(again)
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
