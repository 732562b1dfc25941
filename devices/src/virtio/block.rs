//! The block device (VIRTIO 1.3, 5.2), on a file or a block device of the host.
//!
//! The format is raw and never guessed from content. Requests are parsed from the chain's sizes,
//! not from what the header claims; whatever the guest asks for beyond the disk is an I/O error.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, fdatasync, flock};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::Bytes;

use super::iovec::{Direction, transfer};
use crate::Rare;

use super::{Buffer, Chain, GuestRam, QueueError, Ring, VirtioDevice};

/// The unit of every size and place in a request.
const SECTOR_BYTES: u32 = 512;
const SECTOR: u64 = SECTOR_BYTES as u64;
const QUEUE_SIZE: u16 = 256;
/// A request's header: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of the identification string.
const ID: usize = 20;
/// A range to discard or to zero: sector, number of sectors, flags.
const RANGE: usize = 16;
/// Ranges of one request.
const MAX_RANGES: u32 = 32;
/// Sectors of one range.
const MAX_RANGE_SECTORS: u32 = 1 << 22;
/// Flag of a range to zero: it may become a hole.
const UNMAP: u32 = 1;

/// How a disk is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockOptions {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// The guest may only read.
    pub read_only: bool,
    /// What the guest is told as serial number; 20 bytes at most.
    pub serial: String,
}

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
    /// No whole sector.
    #[error("it has {0} bytes, less than a sector of 512")]
    TooSmall(u64),
}

/// A disk.
#[derive(Debug)]
pub struct Block {
    file: File,
    sectors: u64,
    read_only: bool,
    serial: String,
    chain: Chain,
    errors: Rare,
}

impl Block {
    /// Finds out whether a disk can be opened, without locking it.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn check(options: &BlockOptions) -> Result<(), BlockError> {
        open(&options.path, options.read_only).map(drop)
    }

    /// Opens a disk and locks it: one writer, or any number of readers.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn open(options: &BlockOptions) -> Result<Self, BlockError> {
        let mut file = open(&options.path, options.read_only)?;
        let operation = if options.read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        flock(&file, operation).map_err(|errno| match io::Error::from(errno) {
            error if error.kind() == io::ErrorKind::WouldBlock => BlockError::InUse,
            error => BlockError::Open(error),
        })?;
        // The size of a block device is not in its metadata.
        let size = file.seek(SeekFrom::End(0))?;
        if size < SECTOR {
            return Err(BlockError::TooSmall(size));
        }
        Ok(Self {
            file,
            sectors: size / SECTOR,
            read_only: options.read_only,
            serial: options.serial.clone(),
            chain: Chain::default(),
            errors: Rare::default(),
        })
    }

    /// Serves one request; gives the number of bytes written to guest memory.
    fn request(&mut self, ram: &GuestRam) -> Result<u32, QueueError> {
        // The last byte that the device may write is the status. Without one there is no answer.
        let Some(status) = self.chain.take_last_byte() else {
            return Ok(0);
        };
        let result = self.perform(ram);
        let (code, written) = match result {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(Refusal::Io(error)) => {
                if let Some(times) = self.errors.again() {
                    log::warn!("disk I/O failed, {times} times so far: {error}");
                }
                (VIRTIO_BLK_S_IOERR, 0)
            }
        };
        let code = u8::try_from(code).unwrap_or(u8::MAX);
        ram.write_obj(code, status)?;
        Ok(written.saturating_add(1))
    }

    fn perform(&mut self, ram: &GuestRam) -> Result<u32, Refusal> {
        let mut header = [0; HEADER];
        if !self.chain.read(ram, &mut header)? {
            return Err(failed("a request is cut off"));
        }
        let [kind, _, sector_low, sector_high] = words(header);
        let sector = u64::from(sector_low) | u64::from(sector_high) << 32;
        match kind {
            VIRTIO_BLK_T_IN => {
                let buffers = self.chain.writable();
                let len = self.inside(sector, buffers)?;
                transfer(&self.file, ram, buffers, sector * SECTOR, Direction::Read)?;
                Ok(len)
            }
            VIRTIO_BLK_T_OUT => {
                self.writable()?;
                let buffers = self.chain.readable();
                self.inside(sector, buffers)?;
                transfer(&self.file, ram, buffers, sector * SECTOR, Direction::Write)?;
                Ok(0)
            }
            VIRTIO_BLK_T_FLUSH => {
                fdatasync(&self.file).map_err(io::Error::from)?;
                Ok(0)
            }
            VIRTIO_BLK_T_GET_ID => self.identify(ram),
            VIRTIO_BLK_T_DISCARD => self.ranges(ram, |_| {
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
            }),
            VIRTIO_BLK_T_WRITE_ZEROES => self.ranges(ram, |flags| {
                let how = if flags & UNMAP == 0 {
                    FallocateFlags::ZERO_RANGE
                } else {
                    FallocateFlags::PUNCH_HOLE
                };
                how | FallocateFlags::KEEP_SIZE
            }),
            _ => Err(Refusal::Unsupported),
        }
    }

    fn writable(&self) -> Result<(), Refusal> {
        if self.read_only {
            return Err(failed("the disk is read-only"));
        }
        Ok(())
    }

    /// That whole sectors inside the disk are meant; gives their length in bytes.
    fn inside(&self, sector: u64, buffers: &[Buffer]) -> Result<u32, Refusal> {
        let len: u64 = buffers.iter().map(|buffer| u64::from(buffer.len)).sum();
        let end = sector.checked_add(len.div_ceil(SECTOR));
        if !len.is_multiple_of(SECTOR) || end.is_none_or(|end| end > self.sectors) {
            return Err(failed("a request leaves the disk, or is no whole sectors"));
        }
        u32::try_from(len).map_err(|_| failed("a request of 4 GiB or more"))
    }

    fn identify(&self, ram: &GuestRam) -> Result<u32, Refusal> {
        let mut id = [0; ID];
        for (to, from) in id.iter_mut().zip(self.serial.bytes()) {
            *to = from;
        }
        let mut rest = &id[..];
        for buffer in self.chain.writable() {
            let (part, after) = rest.split_at(rest.len().min(buffer.len as usize));
            ram.write_slice(part, buffer.address)
                .map_err(QueueError::from)?;
            rest = after;
        }
        Ok(u32::try_from(ID - rest.len()).unwrap_or(0))
    }

    /// Discards or zeroes ranges of the disk.
    fn ranges(
        &mut self,
        ram: &GuestRam,
        how: impl Fn(u32) -> FallocateFlags,
    ) -> Result<u32, Refusal> {
        self.writable()?;
        for _ in 0..MAX_RANGES {
            if self.chain.readable().iter().all(|buffer| buffer.len == 0) {
                return Ok(0);
            }
            let mut range = [0; RANGE];
            if !self.chain.read(ram, &mut range)? {
                return Err(failed("a range is cut off"));
            }
            self.range(words(range), &how)?;
        }
        if self.chain.readable().iter().any(|buffer| buffer.len > 0) {
            return Err(failed("too many ranges in one request"));
        }
        Ok(0)
    }

    fn range(
        &self,
        [low, high, count, flags]: [u32; 4],
        how: impl Fn(u32) -> FallocateFlags,
    ) -> Result<(), Refusal> {
        let sector = u64::from(low) | u64::from(high) << 32;
        let end = sector.checked_add(count.into());
        if flags & !UNMAP != 0 {
            return Err(Refusal::Unsupported);
        }
        if count > MAX_RANGE_SECTORS || end.is_none_or(|end| end > self.sectors) {
            return Err(failed("a range leaves the disk, or is too large"));
        }
        if count > 0 {
            let len = u64::from(count) * SECTOR;
            fallocate(&self.file, how(flags), sector * SECTOR, len).map_err(io::Error::from)?;
        }
        Ok(())
    }
}

fn open(path: &Path, read_only: bool) -> Result<File, BlockError> {
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
    let file = File::options()
        .read(true)
        .write(!read_only)
        // A FIFO must not block; a regular file does not care.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_block_device() {
        Ok(file)
    } else {
        Err(BlockError::Kind)
    }
}

/// Why a request fails.
enum Refusal {
    Unsupported,
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<QueueError> for Refusal {
    fn from(error: QueueError) -> Self {
        Self::Io(io::Error::other(error))
    }
}

fn failed(cause: &str) -> Refusal {
    Refusal::Io(io::Error::other(cause.to_owned()))
}

fn words(bytes: [u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    let mut all = words.iter().map(|word| u32::from_le_bytes(*word));
    std::array::from_fn(|_| all.next().unwrap_or_default())
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let mut features =
            1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
        if self.read_only {
            features |= 1 << VIRTIO_BLK_F_RO;
        } else {
            features |= 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        }
        features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    /// `struct virtio_blk_config` (5.2.4) up to write_zeroes_may_unmap.
    fn config(&self) -> Vec<u8> {
        // Header and status have buffers of their own.
        let segments = u32::from(QUEUE_SIZE) - 2;
        let sector = SECTOR_BYTES;
        let mut config = self.sectors.to_le_bytes().to_vec();
        let word = |config: &mut Vec<u8>, values: &[u32]| {
            config.extend(values.iter().copied().flat_map(u32::to_le_bytes));
        };
        // size_max, seg_max, geometry, blk_size, topology (two words), writeback and num_queues.
        word(&mut config, &[0, segments, 0, sector, 0, 0, 1 << 16]);
        // Discard: most sectors, most ranges, alignment. Zeroes: most sectors, most ranges, holes.
        word(&mut config, &[MAX_RANGE_SECTORS, MAX_RANGES, 1]);
        word(&mut config, &[MAX_RANGE_SECTORS, MAX_RANGES, 1]);
        config
    }

    fn serve(
        &mut self,
        _queue: usize,
        ring: &mut Ring,
        _features: u64,
    ) -> Result<bool, QueueError> {
        for _ in 0..ring.size() {
            if !ring.pop(&mut self.chain)? {
                break;
            }
            let written = self.request(ring.ram())?;
            ring.complete(self.chain.head(), written)?;
        }
        ring.publish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
