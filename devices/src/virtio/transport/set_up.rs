//! Fields of a queue that a driver sets up, as both transports write them.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

/// A part of a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    Descriptors,
    /// The available ring.
    Driver,
    /// The used ring.
    Device,
}

/// Changes halves of a part's address. What is not aligned as it has to be stays as it was: that is between
/// the driver and its queue, and not worth the line in the log that virtio-queue's own setters write.
pub(crate) fn set_address(queue: &mut Queue, part: Part, low: Option<u32>, high: Option<u32>) {
    let old = match part {
        Part::Descriptors => queue.desc_table(),
        Part::Driver => queue.avail_ring(),
        Part::Device => queue.used_ring(),
    };
    let low = low.map_or(old & u64::from(u32::MAX), u64::from);
    let high = high.map_or(old >> 32, u64::from);
    let address = GuestAddress(high << 32 | low);
    let _ = match part {
        Part::Descriptors => queue.try_set_desc_table_address(address),
        Part::Driver => queue.try_set_avail_ring_address(address),
        Part::Device => queue.try_set_used_ring_address(address),
    };
}

/// Changes a queue's size, likewise.
pub(crate) fn set_size(queue: &mut Queue, size: u16) {
    let _ = queue.try_set_size(size);
}
