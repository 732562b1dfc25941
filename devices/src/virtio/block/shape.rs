//! What the driver is told of a disk: its size, its blocks, and how many of them a request may have.

use super::Block;
use super::file::Shape;
use super::request::{Erase, SECTOR_BYTES};

impl Block {
    /// `struct virtio_blk_config` (5.2.4) up to write_zeroes_may_unmap.
    pub(super) fn describe(&self, shape: &Shape) -> Vec<u8> {
        // Header and status have buffers of their own.
        let segments = u32::from(self.queue_size.saturating_sub(2).max(1));
        let mut config = self.sectors.to_le_bytes().to_vec();
        let word = |config: &mut Vec<u8>, values: &[u32]| {
            config.extend(values.iter().copied().flat_map(u32::to_le_bytes));
        };
        // size_max, seg_max, geometry, blk_size.
        word(&mut config, &[0, segments, 0, shape.block]);
        // Topology: logical blocks in a physical one (a power of two), its offset, the least and the
        // best size of I/O in logical blocks.
        let blocks = (shape.best / shape.block).max(1);
        let exponent = u8::try_from(blocks.ilog2()).unwrap_or(0);
        let least = u16::try_from(blocks).unwrap_or(1).to_le_bytes();
        config.extend([exponent, 0, least[0], least[1], 0, 0, 0, 0]);
        // writeback, unused, num_queues.
        let queues = self.queues.to_le_bytes();
        config.extend([0, 0, queues[0], queues[1]]);
        // Discard: most sectors, most ranges, alignment. Zeroes: most sectors, most ranges, holes.
        let (sectors, ranges) = Erase::Discard.limits();
        word(&mut config, &[sectors, ranges, shape.block / SECTOR_BYTES]);
        let (sectors, ranges) = Erase::Zero.limits();
        word(&mut config, &[sectors, ranges, self.discard.into()]);
        config
    }
}
