//! Ranges that lose their content: discards and zeroes.

use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, retry_on_intr};

use super::Block;
use super::bounds::STEP;
use super::request::{Erase, Refusal, SECTOR, failed, words};
use crate::virtio::Ring;

/// A range to discard or to zero: sector, number of sectors, flags.
const RANGE: usize = 16;
/// Zeroes that are written at once, in bytes.
const ZEROES: usize = 1 << 16;
/// Flag of a range to zero: it may become a hole.
pub(super) const UNMAP: u32 = 1;

impl Block {
    /// Discards or zeroes ranges of the disk.
    pub(super) fn ranges(&mut self, ring: &Ring, erase: Erase) -> Result<u32, Refusal> {
        self.writable()?;
        let (_, most) = erase.limits();
        for _ in 0..most {
            if self.chain.readable_len() == 0 {
                break;
            }
            if ring.is_stopping() {
                return Err(failed("the driver has reset the disk"));
            }
            let mut range = [0; RANGE];
            if !self.chain.read(ring.ram(), &mut range)? {
                return Err(failed("a range is cut off"));
            }
            self.range(words(range), erase)?;
        }
        if self.chain.readable_len() > 0 {
            return Err(failed("too many ranges in one request"));
        }
        if self.write_through && !ring.is_stopping() {
            self.sync()?;
        }
        Ok(0)
    }

    pub(super) fn range(
        &mut self,
        [low, high, count, flags]: [u32; 4],
        erase: Erase,
    ) -> Result<(), Refusal> {
        let known = match erase {
            Erase::Discard => 0,
            Erase::Zero => UNMAP,
        };
        if flags & !known != 0 {
            return Err(Refusal::Unsupported);
        }
        let sector = u64::from(low) | u64::from(high) << 32;
        let end = sector.checked_add(count.into());
        if count > erase.limits().0 || end.is_none_or(|end| end > self.sectors) {
            return Err(failed("a range leaves the disk, or is too large"));
        }
        if count == 0 {
            return Ok(());
        }
        let (offset, len) = (sector * SECTOR, u64::from(count) * SECTOR);
        let hole = erase == Erase::Discard || self.discard && flags & UNMAP != 0;
        let how = if hole {
            FallocateFlags::PUNCH_HOLE
        } else {
            self.zeroed += len;
            FallocateFlags::ZERO_RANGE
        };
        self.moved = self.moved.wrapping_add(STEP);
        let mode = how | FallocateFlags::KEEP_SIZE;
        self.erased = self.erased.saturating_add(len);
        match retry_on_intr(|| fallocate(&self.file, mode, offset, len)) {
            // The file system has no holes, or no zeroing; a block device takes whole blocks only. A
            // discard is a hint, zeroes are not.
            Err(Errno::OPNOTSUPP | Errno::INVAL) if erase == Erase::Discard => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::INVAL) => Ok(self.write_zeroes(offset, len)?),
            result => Ok(result.map_err(io::Error::from)?),
        }
    }

    pub(super) fn write_zeroes(&mut self, mut offset: u64, mut len: u64) -> io::Result<()> {
        // Pages that the host has not given yet: they cost neither time nor room in the binary.
        let zeroes = vec![0; usize::try_from(len).map_or(ZEROES, |len| len.min(ZEROES))];
        self.moved = self.moved.wrapping_add(len);
        // Not bound to any alignment.
        let file = self.buffered.as_ref().unwrap_or(&self.file);
        while len > 0 {
            let part = usize::try_from(len).map_or(zeroes.len(), |len| len.min(zeroes.len()));
            file.write_all_at(zeroes.get(..part).unwrap_or_default(), offset)?;
            offset += part as u64;
            len -= part as u64;
        }
        Ok(())
    }
}
