//! The host's ends of the devices that micro-guests use.

#[cfg(feature = "virtio-net")]
mod frames;
#[cfg(feature = "virtio-vsock")]
mod streams;

#[cfg(feature = "virtio-net")]
pub(crate) use frames::{FRAMES, comes_back, frame, packet_socket};
#[cfg(feature = "virtio-vsock")]
pub(crate) use streams::{connect, echoes};
