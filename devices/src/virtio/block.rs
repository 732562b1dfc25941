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
use vm_memory::{Bytes, GuestAddress};

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
        let Some((status, writable)) = split_last_byte(self.chain.writable()) else {
            return Ok(0);
        };
        let result = self.perform(ram, &writable);
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

    fn perform(&self, ram: &GuestRam, writable: &[Buffer]) -> Result<u32, Refusal> {
        let (header, data) = take::<HEADER>(ram, self.chain.readable())?;
        let [kind, _, sector_low, sector_high] = words(header);
        let sector = u64::from(sector_low) | u64::from(sector_high) << 32;
        match kind {
            VIRTIO_BLK_T_IN => {
                let len = self.check(sector, writable)?;
                transfer(&self.file, ram, writable, sector * SECTOR, Direction::Read)?;
                Ok(len)
            }
            VIRTIO_BLK_T_OUT => {
                self.writable()?;
                self.check(sector, &data)?;
                transfer(&self.file, ram, &data, sector * SECTOR, Direction::Write)?;
                Ok(0)
            }
            VIRTIO_BLK_T_FLUSH => {
                fdatasync(&self.file).map_err(io::Error::from)?;
                Ok(0)
            }
            VIRTIO_BLK_T_GET_ID => self.identify(ram, writable),
            VIRTIO_BLK_T_DISCARD => self.ranges(ram, &data, |_| {
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
            }),
            VIRTIO_BLK_T_WRITE_ZEROES => self.ranges(ram, &data, |flags| {
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
    fn check(&self, sector: u64, buffers: &[Buffer]) -> Result<u32, Refusal> {
        let len: u64 = buffers.iter().map(|buffer| u64::from(buffer.len)).sum();
        let end = sector.checked_add(len.div_ceil(SECTOR));
        if !len.is_multiple_of(SECTOR) || end.is_none_or(|end| end > self.sectors) {
            return Err(failed("a request leaves the disk, or is no whole sectors"));
        }
        u32::try_from(len).map_err(|_| failed("a request of 4 GiB or more"))
    }

    fn identify(&self, ram: &GuestRam, writable: &[Buffer]) -> Result<u32, Refusal> {
        let mut id = [0; ID];
        for (to, from) in id.iter_mut().zip(self.serial.bytes()) {
            *to = from;
        }
        let mut rest = &id[..];
        for buffer in writable {
            let (part, after) = rest.split_at(rest.len().min(buffer.len as usize));
            ram.write_slice(part, buffer.address)
                .map_err(QueueError::from)?;
            rest = after;
        }
        Ok(u32::try_from(ID - rest.len()).unwrap_or(0))
    }

    /// Discards or zeroes ranges of the disk.
    fn ranges(
        &self,
        ram: &GuestRam,
        data: &[Buffer],
        how: impl Fn(u32) -> FallocateFlags,
    ) -> Result<u32, Refusal> {
        self.writable()?;
        let mut rest = data.to_vec();
        for _ in 0..MAX_RANGES {
            if rest.iter().all(|buffer| buffer.len == 0) {
                return Ok(0);
            }
            let (range, after) = take::<RANGE>(ram, &rest)?;
            rest = after;
            let [low, high, count, flags] = words(range);
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
        }
        Err(failed("too many ranges in one request"))
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

/// The address of the last byte, and the buffers without it.
fn split_last_byte(buffers: &[Buffer]) -> Option<(GuestAddress, Vec<Buffer>)> {
    let last = buffers.iter().rposition(|buffer| buffer.len > 0)?;
    let (before, rest) = buffers.split_at(last);
    let last = rest.first()?;
    let shorter = Buffer {
        address: last.address,
        len: last.len - 1,
    };
    let status = GuestAddress(last.address.0 + u64::from(shorter.len));
    Some((status, before.iter().copied().chain([shorter]).collect()))
}

/// Reads the first `N` bytes of the buffers, however they are cut, and gives what is left.
fn take<const N: usize>(
    ram: &GuestRam,
    buffers: &[Buffer],
) -> Result<([u8; N], Vec<Buffer>), Refusal> {
    let (mut bytes, mut filled) = ([0; N], 0);
    let mut rest = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        let (_, empty) = bytes.split_at_mut(filled);
        let len = empty.len().min(buffer.len as usize);
        let (part, _) = empty.split_at_mut(len);
        ram.read_slice(part, buffer.address)
            .map_err(QueueError::from)?;
        filled += len;
        rest.push(Buffer {
            address: GuestAddress(buffer.address.0 + len as u64),
            len: buffer.len - u32::try_from(len).unwrap_or(buffer.len),
        });
    }
    if filled < N {
        return Err(failed("a request is cut off"));
    }
    Ok((bytes, rest))
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
