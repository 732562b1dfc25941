//! Frames that an embedder's hook takes and gives.

use std::os::fd::RawFd;

use super::frame::{AROUND, HEADER, LARGEST};
use crate::virtio::frame_hook::{FRAME_START, FrameHook};
use crate::virtio::{Chain, GuestRam, QueueError};

/// The Ethernet header.
const ETHERNET: usize = 14;
/// Room for any frame of a driver, its header included.
#[allow(clippy::cast_possible_truncation)] // less than 128 KiB
const ROOM: usize = (LARGEST + AROUND) as usize;

/// A hook, and the frame that it is at.
#[derive(Debug)]
pub(super) struct Hooked {
    hook: Box<dyn FrameHook>,
    /// With the header of virtio.
    frame: Vec<u8>,
    /// How much of `frame` was fetched of one that the hook did not take.
    fetched: usize,
    /// The hook may have frames for the guest.
    pub(super) due: bool,
    /// The network is the next to use the driver's buffers.
    network_first: bool,
}

impl Hooked {
    pub(super) fn new(hook: Box<dyn FrameHook>) -> Self {
        Self {
            hook,
            frame: vec![0; ROOM],
            fetched: 0,
            due: true,
            network_first: false,
        }
    }

    /// Whether the hook is before the network this time: neither keeps the driver's last buffers from the other.
    pub(super) fn is_first(&mut self) -> bool {
        self.network_first = !self.network_first;
        !self.network_first
    }

    pub(super) fn wakes(&self) -> Option<RawFd> {
        self.hook.wakes()
    }

    /// Asks it for frames.
    pub(super) fn wake(&mut self) {
        self.due = true;
    }

    pub(super) fn reset(&mut self) {
        self.hook.reset();
    }

    /// Shows a frame of `len` bytes, and says whether the hook has taken it. What was fetched of it, which is taken
    /// off the chain, is [`Self::start`] then.
    pub(super) fn take(
        &mut self,
        chain: &mut Chain,
        ram: &GuestRam,
        len: usize,
    ) -> Result<bool, QueueError> {
        let Some(frame) = self.frame.get_mut(..len) else {
            return Ok(false);
        };
        let (start, rest) = frame.split_at_mut(len.min(HEADER + FRAME_START));
        chain.read(ram, start)?;
        self.fetched = start.len();
        let shown = start.get(HEADER..).unwrap_or_default();
        if !self.hook.wants(shown) {
            return Ok(false);
        }
        chain.read(ram, rest)?;
        self.hook.take(frame.get(HEADER..).unwrap_or_default());
        self.due = true;
        Ok(true)
    }

    /// The beginning of the frame that the hook has just not taken.
    pub(super) fn start(&self) -> &[u8] {
        self.frame.get(..self.fetched).unwrap_or_default()
    }

    /// The hook's next frame, behind an empty header of virtio. The driver has room for so many bytes.
    pub(super) fn give(&mut self, mtu: u16, room: u64) -> Option<&[u8]> {
        let most = HEADER + ETHERNET + usize::from(mtu);
        let room = usize::try_from(room).map_or(most, |room| room.min(most));
        let frame = self.frame.get_mut(..room)?;
        let (header, body) = frame.split_at_mut_checked(HEADER)?;
        header.fill(0);
        let len = self.hook.give(body).min(body.len());
        if len == 0 {
            self.due = false;
            return None;
        }
        self.frame.get(..HEADER + len)
    }
}
