//! How large frames are, and what of a queue they take.

/// `struct virtio_net_hdr_v1`, in front of every frame.
pub(super) const HEADER: usize = 12;
/// Its last field: the number of buffers of a received frame.
pub(super) const NUM_BUFFERS: u64 = 10;
/// The largest frame: a packet of 64 KiB that the receiver cuts, its Ethernet header, ours.
pub(super) const LARGEST: u64 = 65535 + 14 + HEADER as u64;
/// What a frame has besides its packet: ours, the Ethernet header with a VLAN tag.
pub(super) const AROUND: u64 = HEADER as u64 + 18;
/// Entries of a queue that holds the largest frame in any case. Linux gives a buffer for each entry,
/// of [`BUFFER`] bytes at least, and new ones when half of them are used.
pub(super) const LARGE_QUEUE: u16 = 128;
/// What a usual frame takes.
pub(super) const BUFFER: u64 = DEFAULT_MTU as u64 + AROUND;
/// What an interface has unless somebody says otherwise.
pub(super) const DEFAULT_MTU: u16 = 1500;
