//! Frames from the driver to the tap, or to a hook.

use std::os::fd::AsFd;

use super::frame::{AROUND, HEADER, LARGEST};
use super::hook::Hooked;
use super::{Net, TRANSMIT};
use crate::virtio::{QueueError, Queues};

impl Net {
    /// Moves frames from the driver to the tap. Says whether there may be more.
    pub(super) fn transmit(
        &mut self,
        number: usize,
        queues: &mut Queues,
    ) -> Result<bool, QueueError> {
        let pair = self.pairs.get(number).filter(|_| number < self.usable);
        let (Some(ring), Some(pair)) = (queues.ring(2 * number + TRANSMIT), pair) else {
            return Ok(false);
        };
        let mut failure = None;
        let mut more = true;
        for _ in 0..ring.size() {
            let allowed = self.limits[TRANSMIT].allows();
            if !allowed && ring.has_more()? {
                self.limits[TRANSMIT].hold();
            }
            more = allowed && ring.pop(&mut self.chain)?;
            if !more {
                break;
            }
            let len = self.chain.readable_len();
            // R22: shorter than its header; or longer than any frame. Neither is one.
            let is_frame = (HEADER as u64..=LARGEST + AROUND).contains(&len);
            let mut passed = false;
            if !self.down && !self.unplugged && is_frame {
                let size = usize::try_from(len).unwrap_or(usize::MAX);
                let hooked = self.hooked.as_mut();
                let taken = hooked.map(|hooked| hooked.take(&mut self.chain, ring.ram(), size));
                passed = taken.transpose()?.unwrap_or_default();
                if !passed {
                    // What a hook has seen passes as it has seen it.
                    let seen = self.hooked.as_ref().map_or(&[][..], Hooked::start);
                    self.vectors.set(ring.ram(), self.chain.readable())?;
                    match self.vectors.write_behind(seen, pair.tap.as_fd()) {
                        Ok(_) => passed = true,
                        Err(error) => failure = Some(error),
                    }
                    self.limits[TRANSMIT].charge(len);
                }
            }
            self.counts.transmitted(len, passed);
            ring.complete(self.chain.head(), 0)?;
        }
        if let Some(error) = failure {
            self.failed(&error, queues);
        }
        Ok(more)
    }
}
