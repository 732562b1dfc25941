//! virtio: devices, their queues, and the transports that carry them (VIRTIO 1.3).
//!
//! A device knows nothing of its transport. When the driver is ready, the transport moves the
//! device and its queues into a worker thread; on reset it stops the thread and has the device back:
//! a device that is not running has no way to reach guest memory.

mod block;
mod iovec;
mod mmio;
mod queue;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod testing;
mod worker;

use std::fmt::Debug;

pub use block::{Block, BlockError, BlockOptions};
pub use mmio::{Connect, VirtioMmio};
pub use queue::{Buffer, Chain, GuestRam, QueueError, Ring};

/// A virtio device.
pub trait VirtioDevice: Debug + Send {
    /// Its type (section 5).
    fn id(&self) -> u32;

    /// The feature bits that it offers besides those of queues and transport.
    fn features(&self) -> u64;

    /// The largest size of each of its queues.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Its configuration space.
    fn config(&self) -> Vec<u8>;

    /// Serves what is in a queue, at most as many chains as the queue has entries. Says whether the
    /// driver wants an interrupt. `features` are those that were negotiated.
    ///
    /// # Errors
    /// When the driver broke a rule of the queue.
    fn serve(&mut self, queue: usize, ring: &mut Ring, features: u64) -> Result<bool, QueueError>;
}
