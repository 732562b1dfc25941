//! virtio: devices, their queues, and the transports that carry them (VIRTIO 1.3).
//!
//! A device knows nothing of its transport. When the driver is ready, the transport moves the
//! device and its queues into a worker thread; on reset it stops the thread and has the device back:
//! a device that is not running has no way to reach guest memory.

#[cfg(feature = "virtio-balloon")]
mod balloon;
#[cfg(feature = "virtio-blk")]
mod block;
mod config_space;
#[cfg(feature = "virtio-console")]
mod console;
#[cfg(any(feature = "virtio-blk", feature = "virtio-net"))]
mod holder;
// Each device uses its part of these.
mod interrupt;
#[cfg_attr(
    not(all(feature = "virtio-blk", feature = "virtio-net")),
    allow(dead_code)
)]
mod iovec;
#[cfg(any(feature = "virtio-blk", feature = "virtio-net"))]
mod limit;
mod mmio;
mod monitor;
#[cfg(feature = "virtio-net")]
mod net;
mod notice;
#[cfg(feature = "pci")]
mod pci;
mod queue;
mod queues;
#[cfg(feature = "virtio-balloon")]
mod release;
#[cfg(feature = "virtio-rng")]
mod rng;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod testing;
#[cfg(any(
    feature = "virtio-balloon",
    feature = "virtio-blk",
    feature = "virtio-net"
))]
mod timer;
mod transport;
#[cfg(feature = "virtio-vsock")]
mod vsock;
mod worker;

use std::fmt::Debug;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

#[cfg(feature = "virtio-balloon")]
pub use balloon::Balloon;
#[cfg(feature = "virtio-blk")]
pub use block::{Block, BlockError};
pub use config_space::ConfigSpace;
#[cfg(feature = "virtio-console")]
pub use console::{ConsolePort, VirtioConsole};
pub use interrupt::Interrupt;
pub use mmio::VirtioMmio;
pub use monitor::Monitor;
#[cfg(feature = "virtio-net")]
pub use net::{Net, NetError};
pub use notice::{Listener, Notice, Notices};
#[cfg(feature = "pci")]
pub use pci::{ConnectAt, VirtioPci};
pub use queue::{Buffer, Chain, GuestRam, QueueError, Ring};
pub use queues::Queues;
#[cfg(feature = "virtio-rng")]
pub use rng::Rng;
pub use transport::Connect;
#[cfg(feature = "virtio-vsock")]
pub use vsock::{Vsock, VsockError};

use crate::{Change, ChangeError, Query, Report};

/// What wakes a running device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The driver filled this queue.
    Queue(usize),
    /// This one of [`VirtioDevice::sources`] became ready.
    Source(usize),
}

/// A virtio device.
///
/// Queues and sources are 32 each at most.
pub trait VirtioDevice: Debug + Send {
    /// Its type (section 5).
    fn id(&self) -> u32;

    /// Its name, for threads and messages.
    fn name(&self) -> &'static str;

    /// The feature bits that it offers besides those of queues and transport.
    fn features(&self) -> u64;

    /// The largest size of each of its queues.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Its configuration space, which device and transport share.
    fn config(&self) -> Arc<ConfigSpace>;

    /// What the VMM sees of it without asking; the same for its whole life.
    fn monitor(&self) -> Arc<Monitor> {
        Arc::default()
    }

    /// Descriptors that wake it besides its queues. They are watched edge-triggered: whoever is
    /// woken reads until there is nothing more, or remembers that there is. They stay open and the
    /// same while the device runs.
    fn sources(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// The driver is ready; these features were negotiated.
    fn start(&mut self, features: u64) {
        let _ = features;
    }

    /// Features that make sense only with one of others, by their bits (VIRTIO 1.3, "feature bit
    /// requirements" of each device): a driver that takes one without is refused.
    fn dependencies(&self) -> &'static [(u32, &'static [u32])] {
        &[]
    }

    /// Serves an event, in a bounded time, at most as many chains of a queue as it has entries. Says
    /// whether there is more to do now: then the same event comes again.
    ///
    /// # Errors
    /// When the driver broke a rule of a queue.
    fn serve(&mut self, event: Event, queues: &mut Queues) -> Result<bool, QueueError>;

    /// Ends and answers whatever is in flight, and begins nothing: the machine is paused. What the driver has
    /// queued and the device has not begun stays queued, and what waits for something outside the guest goes on
    /// waiting.
    ///
    /// # Errors
    /// When the driver broke a rule of a queue.
    fn quiesce(&mut self, queues: &mut Queues) -> Result<(), QueueError> {
        let _ = queues;
        Ok(())
    }

    /// The driver takes a queue back: whatever the device holds of it is answered before this returns. The
    /// queue is gone afterwards.
    ///
    /// # Errors
    /// When the driver broke a rule of a queue.
    fn close(&mut self, queue: usize, queues: &mut Queues) -> Result<(), QueueError> {
        let _ = queue;
        self.quiesce(queues)
    }

    /// Changes a part of the device, whose values were checked, at once. `queues` are there while a driver uses the
    /// device, to tell it of a new configuration; also while the machine is paused.
    ///
    /// # Errors
    /// When it has no such part, or this cannot be now.
    fn change(&mut self, change: &Change, queues: Option<&Queues>) -> Result<(), ChangeError> {
        let _ = (change, queues);
        Err(ChangeError::Foreign)
    }

    /// Puts another open file behind the device, which `name` stands for in messages: what has begun ends in the old
    /// one. `queues` as for [`Self::change`].
    ///
    /// # Errors
    /// When it has no file, or cannot have this one, and goes on as it was.
    fn replace_file(
        &mut self,
        file: OwnedFd,
        name: &str,
        queues: Option<&mut Queues>,
    ) -> Result<(), ChangeError> {
        let _ = (file, name, queues);
        Err(ChangeError::Foreign)
    }

    /// Tells something of the device, at once: nobody waits for the guest. `queues` are there while a driver uses the
    /// device and the guest runs; without them nothing touches guest memory.
    ///
    /// # Errors
    /// When it has no such thing to tell.
    fn query(&mut self, query: Query, queues: Option<&mut Queues>) -> Result<Report, ChangeError> {
        let _ = (query, queues);
        Err(ChangeError::Foreign)
    }

    /// The driver resets the device: whatever is in flight ends before this returns, and nothing
    /// touches guest memory afterwards.
    fn stop(&mut self) {}
}

/// Where a device is in its life, as the VMM sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceState {
    /// No driver uses it.
    Idle,
    /// A driver uses it.
    Running,
    /// The driver broke a rule, or a fault of the VMM stopped it: it waits for the driver's reset.
    NeedsReset,
    /// A fault of the VMM has lost it.
    Lost,
}

/// A device behind its transport, as the VMM sees it.
pub trait VirtioTransport: Debug + Send + Sync {
    /// Where the device is in its life.
    fn state(&self) -> DeviceState;

    /// What the device counts and tells, in whatever state it is.
    fn monitor(&self) -> Arc<Monitor>;

    /// Stops a device that runs, and answers what is in flight. What the driver has queued stays queued. No
    /// vCPU may run from before this until [`Self::resume`].
    fn pause(&self);

    /// A device that was paused goes on.
    fn resume(&self);

    /// Changes a part of the device, in whatever state it is.
    ///
    /// # Errors
    /// When a value is wrong, the device has no such part or is lost, or this cannot be now.
    fn change(&self, change: &Change) -> Result<(), ChangeError>;

    /// Puts another open file behind the device, in whatever state it is.
    ///
    /// # Errors
    /// As [`Self::change`].
    fn replace_file(&self, file: OwnedFd, name: &str) -> Result<(), ChangeError>;

    /// Has a device tell something, in whatever state it is.
    ///
    /// # Errors
    /// When the device has no such thing to tell, or is lost.
    fn query(&self, query: Query) -> Result<Report, ChangeError>;

    /// Resets the device and gives it back, for another transport: nothing is behind this one any more.
    /// `None` when the device is lost.
    fn take_device(&self) -> Option<Box<dyn VirtioDevice>>;
}
#[cfg(all(
    test,
    feature = "virtio-balloon",
    feature = "virtio-blk",
    feature = "virtio-console",
    feature = "virtio-net",
    feature = "virtio-rng",
    feature = "virtio-vsock"
))]
#[allow(clippy::unwrap_used)]
mod tests;
