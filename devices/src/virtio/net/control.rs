//! The control queue: how many pairs of queues the driver uses.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use super::Net;
use crate::virtio::{QueueError, Queues};

impl Net {
    /// Serves the control queue: how many pairs of queues the driver uses. Says whether there may be
    /// more.
    pub(super) fn command(&mut self, queues: &mut Queues) -> Result<bool, QueueError> {
        let Some(ring) = queues.ring(self.control) else {
            return Ok(false);
        };
        for _ in 0..ring.size() {
            if !ring.pop(&mut self.chain)? {
                return Ok(false);
            }
            let mut command = [0; 4];
            let whole = self.chain.read(ring.ram(), &mut command)?;
            let [class, command, low, high] = command;
            let pairs = usize::from(u16::from_le_bytes([low, high]));
            let known = u32::from(class) == VIRTIO_NET_CTRL_MQ
                && u32::from(command) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;
            let done = whole && known && self.use_pairs(pairs);
            self.counts.commanded(done);
            let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            let answer = u8::try_from(answer).unwrap_or(u8::MAX);
            let written = self.chain.write(ring.ram(), &[answer])?;
            ring.complete(self.chain.head(), written)?;
        }
        Ok(true)
    }

    /// Frames come to the first `count` pairs only.
    pub(super) fn use_pairs(&mut self, count: usize) -> bool {
        if !(1..=self.usable).contains(&count) {
            return false;
        }
        let mut done = true;
        for (number, pair) in self.pairs.iter_mut().enumerate() {
            let wanted = number < count;
            if pair.enabled == wanted {
                continue;
            }
            match pair.tap.set_enabled(wanted) {
                Ok(()) => pair.enabled = wanted,
                // Tried again with the next command.
                Err(error) => {
                    done = false;
                    if let Some(times) = self.refusals.again() {
                        log::warn!(
                            "a queue of the tap device cannot be switched, {times} times so far: {error}"
                        );
                    }
                }
            }
        }
        done
    }
}
