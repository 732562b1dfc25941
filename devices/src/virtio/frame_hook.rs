//! A hook in a network device: code of an embedder's own that sees what the guest sends.

use std::fmt::Debug;
use std::os::fd::RawFd;

/// How many bytes of a frame a hook decides by: the headers of Ethernet, ARP and IPv4 with room to spare.
pub const FRAME_START: usize = 64;

/// A hook in a network device, of an embedder's own. It sees the beginning of every frame that the guest sends, may take
/// frames so that they do not reach the network, and may send frames to the guest, as if they had come from there. So a
/// VMM can be a host on its guest's network: answer ARP or DHCP, have a metadata service, filter.
///
/// It is called on the device's thread, and the guest's other frames wait meanwhile: no call waits for anything. The
/// guest is hostile, and frames are whatever it makes of them. They are Ethernet frames without the header of
/// virtio and without a check sequence. A driver that leaves work to the network (VIRTIO_NET_F_CSUM,
/// VIRTIO_NET_F_HOST_TSO4 and its kin) has checksums of TCP and UDP that are not filled in, and segments of up to 64 KiB.
///
/// What a hook takes and sends is counted as sent and received, and no limit of the device holds it. While the link is
/// down nothing passes. A hook lives as long as its device: it is the same one after a reset and a restart of the guest,
/// and is not called while the machine is paused. It is no part of a saved machine; the one that goes on has a new one.
pub trait FrameHook: Debug + Send {
    /// Whether the hook takes a frame that begins with these bytes, [`FRAME_START`] of them unless the frame is shorter. If
    /// not, the frame goes to the network with exactly these bytes, whatever the guest does meanwhile.
    fn wants(&mut self, start: &[u8]) -> bool;

    /// Takes a frame.
    fn take(&mut self, frame: &[u8]);

    /// Writes the next frame for the guest to the beginning of `room`, which has space for one of the guest's MTU
    /// in the buffers that its driver offers; gives the frame's length, or 0 when there is none. It is asked after it
    /// has taken frames and after it was woken, until it has none.
    fn give(&mut self, room: &mut [u8]) -> usize;

    /// A descriptor that wakes the device when there are frames for the guest or may be, such as a timer or an
    /// eventfd. It is watched edge-triggered and never read by the device, and stays the same for the hook's whole life.
    fn wakes(&self) -> Option<RawFd> {
        None
    }

    /// The driver has reset the device: whatever was on its way to the guest is lost.
    fn reset(&mut self) {}
}
