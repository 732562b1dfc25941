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
mod device;
mod event;
mod frame_hook;
mod handle;
#[cfg(any(feature = "virtio-blk", feature = "virtio-net"))]
mod holder;
// Each device uses its part of these.
mod interrupt;
#[cfg_attr(
    not(all(feature = "virtio-blk", feature = "virtio-net")),
    allow(dead_code)
)]
mod iovec;
#[cfg(any(feature = "virtio-blk", feature = "virtio-net", feature = "virtio-rng"))]
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
    feature = "virtio-net",
    feature = "virtio-rng"
))]
mod timer;
mod transport;
#[cfg(feature = "virtio-vsock")]
mod vsock;
mod worker;

#[cfg(feature = "virtio-balloon")]
pub use balloon::Balloon;
#[cfg(feature = "virtio-blk")]
pub use block::{Block, BlockError};
pub use config_space::ConfigSpace;
#[cfg(feature = "virtio-console")]
pub use console::{ConsolePort, VirtioConsole};
pub use device::VirtioDevice;
pub use event::Event;
pub use frame_hook::{FRAME_START, FrameHook};
pub use handle::{DeviceState, VirtioTransport};
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
pub use vsock::Vsock;

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
