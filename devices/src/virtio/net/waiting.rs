//! Chains of the driver that wait for frames: a frame fills as many as it needs.

use vm_memory::{Bytes, GuestAddress};

use super::frame::NUM_BUFFERS;
use crate::virtio::iovec::{BATCH, Vectors};
use crate::virtio::{Chain, QueueError, Ring};

/// Chains of the driver that wait for a frame.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) chains: Vec<WaitingChain>,
    /// Their buffers in one row.
    pub(super) vectors: Vectors,
    /// Bytes of all.
    pub(super) len: u64,
    pub(super) scratch: Chain,
}

#[derive(Debug)]
pub(super) struct WaitingChain {
    pub(super) head: u16,
    pub(super) len: u32,
    /// How many buffers.
    pub(super) buffers: usize,
    /// Where to write the number of buffers: each byte has its place.
    pub(super) num_buffers: [GuestAddress; 2],
}

impl Waiting {
    pub(super) fn clear(&mut self) {
        self.chains.clear();
        self.vectors.clear();
        self.len = 0;
    }

    /// Leaves the chains in their queue: they are the last ones that were fetched.
    pub(super) fn give_back(&mut self, ring: &mut Ring) {
        ring.undo_pop(u16::try_from(self.chains.len()).unwrap_or(0));
        self.clear();
    }

    /// Fetches chains until a frame of `need` bytes fits, or one chain if a frame may not have
    /// several.
    pub(super) fn fill(
        &mut self,
        ring: &mut Ring,
        need: u64,
        mergeable: bool,
    ) -> Result<(), QueueError> {
        // A driver has no more chains than its ring has entries, unless it gives one twice.
        for _ in self.chains.len()..ring.size().into() {
            let full = self.len >= need
                || !mergeable && !self.chains.is_empty()
                || self.vectors.as_slice().len() >= BATCH;
            if full || !ring.pop(&mut self.scratch)? {
                break;
            }
            let chain = &self.scratch;
            let len = u32::try_from(chain.writable_len()).unwrap_or(u32::MAX);
            let place = |offset| chain.writable_at(offset);
            let (Some(low), Some(high)) = (place(NUM_BUFFERS), place(NUM_BUFFERS + 1)) else {
                // R22: no room for the header. It comes back when nothing waits: what does was fetched last.
                if !self.chains.is_empty() {
                    ring.undo_pop(1);
                    break;
                }
                ring.complete(chain.head(), 0)?;
                continue;
            };
            for buffer in chain.writable() {
                self.vectors.add(ring.ram(), *buffer)?;
            }
            self.chains.push(WaitingChain {
                head: chain.head(),
                len,
                buffers: chain.writable().len(),
                num_buffers: [low, high],
            });
            self.len += u64::from(len);
        }
        Ok(())
    }

    /// Gives the chains that a frame of `len` bytes has filled to the driver.
    pub(super) fn complete(&mut self, ring: &mut Ring, len: usize) -> Result<(), QueueError> {
        let mut rest = u32::try_from(len).unwrap_or(u32::MAX);
        let (mut used, mut buffers) = (0u16, 0);
        for chain in &self.chains {
            let part = rest.min(chain.len);
            ring.complete(chain.head, part)?;
            rest -= part;
            used += 1;
            buffers += chain.buffers;
            self.len -= u64::from(chain.len);
            if rest == 0 {
                break;
            }
        }
        if let Some(first) = self.chains.first() {
            for (address, byte) in first.num_buffers.into_iter().zip(used.to_le_bytes()) {
                ring.ram().write_obj(byte, address)?;
            }
        }
        self.chains.drain(..usize::from(used));
        self.vectors.remove_first(buffers);
        Ok(())
    }
}
