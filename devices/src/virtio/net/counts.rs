//! What a network device counts: frames of both directions, and commands.

use std::sync::Arc;

use super::frame::HEADER;
use crate::metrics::Operation;
use crate::virtio::Monitor;

/// The counters of a network device.
#[derive(Debug)]
pub(super) struct Counts {
    pub(super) monitor: Arc<Monitor>,
    receive: Arc<Operation>,
    transmit: Arc<Operation>,
    control: Arc<Operation>,
}

impl Default for Counts {
    fn default() -> Self {
        let mut monitor = Monitor::default();
        let [receive, transmit, control] =
            ["receive", "transmit", "control"].map(|name| monitor.operation(name));
        Self {
            monitor: Arc::new(monitor),
            receive,
            transmit,
            control,
        }
    }
}

impl Counts {
    /// A frame of so many bytes, its header among them, has come from the tap. `waited`: for a buffer.
    pub(super) fn received(&self, len: usize, passes: bool, waited: bool) {
        count(&self.receive, len as u64, passes);
        if waited {
            self.monitor.stalls.add(1);
        }
    }

    /// The driver has sent a frame of so many bytes, its header among them.
    pub(super) fn transmitted(&self, len: u64, passed: bool) {
        count(&self.transmit, len, passed);
    }

    /// The driver got an answer to a command.
    pub(super) fn commanded(&self, done: bool) {
        // Without data.
        count(&self.control, 0, done);
    }
}

fn count(operation: &Operation, len: u64, passed: bool) {
    if passed {
        operation.succeed(len.saturating_sub(HEADER as u64));
    } else {
        operation.fail();
    }
}
