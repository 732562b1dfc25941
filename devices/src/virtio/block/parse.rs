//! What a request of the driver asks for. Sizes are the chain's, places are inside the disk or refused.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::Block;
use super::counts::Kind;
use super::request::{Erase, Job, Parsed, Refusal, SECTOR, failed, words};
use crate::virtio::iovec::Direction;
use crate::virtio::{Buffer, GuestRam, Ring};

/// A request's header: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of the identification string.
const ID: usize = 20;

impl Block {
    /// Finds out what a request wants; does at once what is rare. The data of a transfer is in
    /// `vectors` then.
    pub(super) fn parse(&mut self, ring: &Ring) -> Result<Parsed, Refusal> {
        let ram = ring.ram();
        let mut header = [0; HEADER];
        if !self.chain.read(ram, &mut header)? {
            return Err(failed("a request is cut off"));
        }
        let [kind, _, sector_low, sector_high] = words(header);
        let sector = u64::from(sector_low) | u64::from(sector_high) << 32;
        self.kind = match kind {
            VIRTIO_BLK_T_IN => Kind::Read,
            VIRTIO_BLK_T_OUT => Kind::Write,
            VIRTIO_BLK_T_FLUSH => Kind::Flush,
            VIRTIO_BLK_T_GET_ID => Kind::Identify,
            VIRTIO_BLK_T_DISCARD => Kind::Discard,
            VIRTIO_BLK_T_WRITE_ZEROES => Kind::Zero,
            _ => Kind::Other,
        };
        let done = match kind {
            VIRTIO_BLK_T_IN => return self.transfer(ram, sector, Direction::Read),
            VIRTIO_BLK_T_OUT => return self.transfer(ram, sector, Direction::Write),
            VIRTIO_BLK_T_FLUSH => {
                self.vectors.set(ram, &[])?;
                return Ok(Parsed::Job(Job::Flush, 0));
            }
            VIRTIO_BLK_T_GET_ID => self.identify(ram)?,
            VIRTIO_BLK_T_DISCARD if self.discard => self.ranges(ring, Erase::Discard)?,
            VIRTIO_BLK_T_WRITE_ZEROES => self.ranges(ring, Erase::Zero)?,
            _ => return Err(Refusal::Unsupported),
        };
        Ok(Parsed::Done(done))
    }

    pub(super) fn transfer(
        &mut self,
        ram: &GuestRam,
        sector: u64,
        direction: Direction,
    ) -> Result<Parsed, Refusal> {
        let buffers = match direction {
            Direction::Read => self.chain.writable(),
            Direction::Write => {
                self.writable()?;
                self.chain.readable()
            }
        };
        let len = self.inside(sector, buffers)?;
        self.vectors.set(ram, buffers)?;
        let offset = sector * SECTOR;
        let alignment = self.alignment;
        // What goes beyond the file's end goes in parts that are not aligned.
        let aligned = self.buffered.is_none()
            || offset.is_multiple_of(alignment.into())
                && self.vectors.is_aligned(alignment as usize)
                && offset + u64::from(len) <= self.size;
        let job = Job::Transfer {
            direction,
            offset,
            unaligned: !aligned,
            durable: self.write_through && direction == Direction::Write,
        };
        Ok(Parsed::Job(job, len))
    }

    pub(super) fn writable(&self) -> Result<(), Refusal> {
        if self.read_only {
            return Err(failed("the disk is read-only"));
        }
        Ok(())
    }

    /// That whole sectors inside the disk are meant; gives their length in bytes.
    pub(super) fn inside(&self, sector: u64, buffers: &[Buffer]) -> Result<u32, Refusal> {
        let len = buffers
            .iter()
            .map(|buffer| u64::from(buffer.len))
            .sum::<u64>();
        let end = sector.checked_add(len.div_ceil(SECTOR));
        if !len.is_multiple_of(SECTOR) || end.is_none_or(|end| end > self.sectors) {
            return Err(failed("a request leaves the disk, or is no whole sectors"));
        }
        u32::try_from(len).map_err(|_| failed("a request of 4 GiB or more"))
    }

    pub(super) fn identify(&mut self, ram: &GuestRam) -> Result<u32, Refusal> {
        let mut id = [0; ID];
        for (to, from) in id.iter_mut().zip(self.serial.bytes()) {
            *to = from;
        }
        Ok(self.chain.write(ram, &id)?)
    }
}
