//! Frames from a hook to the driver.

use super::{Net, RECEIVE};
use crate::virtio::{QueueError, Queues};

/// Frames that a hook gives before others have their turn.
const AT_ONCE: usize = 32;

impl Net {
    /// Moves frames from the hook to the driver, on the first pair, which any driver uses. Says whether there
    /// may be more.
    pub(super) fn hand_over(&mut self, queues: &mut Queues) -> Result<bool, QueueError> {
        let (Some(hooked), Some(pair)) = (&mut self.hooked, self.pairs.first_mut()) else {
            return Ok(false);
        };
        let Some(ring) = queues.ring(RECEIVE).filter(|_| hooked.due) else {
            return Ok(false);
        };
        if self.down || self.unplugged {
            return Ok(false);
        }
        for _ in 0..AT_ONCE {
            let waiting = &mut pair.waiting;
            waiting.fill(ring, self.need, self.mergeable)?;
            if ring.is_stopping() || waiting.chains.is_empty() {
                return Ok(false);
            }
            let mtu = self.mtu;
            let Some(frame) = hooked.give(mtu, waiting.len) else {
                return Ok(false);
            };
            waiting.vectors.fill(frame);
            let len = frame.len();
            self.counts.received(len, true, false);
            waiting.complete(ring, len)?;
        }
        Ok(true)
    }
}
