//! Input on its way to the guest: read when there is a place for it, and kept until the device takes it.

use std::io;

use event_manager::{EventOps, EventSet, Events};

use super::{INPUT, Line, read_now};
use crate::console::escape::HELP;
use crate::console::{EscapeKeys, in_background};

/// Input of a terminal that is kept for a guest that does not read it, in bytes: so far the escape keys are
/// looked for. What was typed beyond stays in the terminal.
pub(super) const TYPED: usize = 1 << 20;
/// One read of the input.
const READ: usize = 4096;

impl Line {
    /// Watches the input, or what stands in for it.
    fn watch_input(&mut self, ops: &mut EventOps<'_>) {
        let Some(input) = &self.input else { return };
        if std::mem::replace(&mut self.watching_input, true) {
            return;
        }
        if ops
            .add(Events::with_data(input, self.data(INPUT), EventSet::IN))
            .is_err()
        {
            // EPERM: a regular file or /dev/null, ready at any time. When both fail, the guest
            // gets no input, which is all that can be done.
            let ready = Events::with_data(&self.always_ready, self.data(INPUT), EventSet::IN);
            let _ = ops.add(ready);
        }
    }

    fn unwatch_input(&mut self, ops: &mut EventOps<'_>) {
        if let Some(input) = &self.input
            && std::mem::take(&mut self.watching_input)
        {
            // One of the two is registered.
            let _ = ops.remove(Events::empty(input));
            let _ = ops.remove(Events::empty(&self.always_ready));
        }
    }

    pub(super) fn read_input(&mut self, ops: &mut EventOps<'_>) {
        let mut buffer = [0; READ];
        let Some(input) = &mut self.input else { return };
        if self.escape.keys == EscapeKeys::On && in_background(&*input) {
            // These keys are another job's, and reading them would stop this process.
            self.unwatch_input(ops);
            self.away = true;
            return;
        }
        match read_now(input, &mut buffer) {
            Ok(len @ 1..) => {
                let keys = self.escape.filter(&buffer[..len.min(buffer.len())]);
                if keys.help {
                    self.port.output.ring.keep(HELP.as_bytes());
                }
                if keys.stop {
                    return self.handle.request_stop();
                }
                self.pending.extend(keys.bytes);
                self.offer_input(ops);
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            // End of input, or the terminal is gone: the guest goes on without.
            Ok(_) | Err(_) => {
                self.unwatch_input(ops);
                self.input = None;
            }
        }
    }

    /// Offers pending input to the device. A pipe or file is read again when all was taken; a terminal is
    /// read further, so that the escape keys work, until [`TYPED`] bytes wait.
    pub(super) fn offer_input(&mut self, ops: &mut EventOps<'_>) {
        loop {
            let (first, _) = self.pending.as_slices();
            if first.is_empty() {
                break;
            }
            let offered = first.len();
            let taken = (self.port.receive)(first).min(offered);
            self.pending.drain(..taken);
            if taken < offered {
                break;
            }
        }
        if self.input_may_come() && !self.away {
            self.watch_input(ops);
        } else {
            self.unwatch_input(ops);
        }
    }

    /// Whether there is a place for what comes.
    fn input_may_come(&mut self) -> bool {
        if self.escape.keys == EscapeKeys::Off {
            return self.pending.is_empty();
        }
        let full = self.pending.len() >= TYPED;
        if full && !std::mem::replace(&mut self.said_full, true) {
            log::warn!(
                "the guest does not read its console, and {} bytes of input wait for it; the terminal is read \
                 again, for the escape keys too, when it does; until then SIGINT or SIGTERM ends the VM",
                self.pending.len()
            );
        }
        !full
    }

    pub(super) fn guest_has_room(&mut self, ops: &mut EventOps<'_>) {
        // Reading only resets the counter.
        let _ = self.port.room.read();
        self.offer_input(ops);
    }
}
