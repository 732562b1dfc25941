//! What a socket device counts: packets of both directions, and connections by who began them.

use std::sync::Arc;

use crate::metrics::{Counter, Operation};
use crate::virtio::Monitor;

/// The counters of a socket device.
#[derive(Debug)]
pub(super) struct Counts {
    pub(super) monitor: Arc<Monitor>,
    receive: Arc<Operation>,
    transmit: Arc<Operation>,
    connect: Arc<Operation>,
    accept: Arc<Operation>,
    /// How many are open.
    pub(super) streams: Arc<Counter>,
}

impl Default for Counts {
    fn default() -> Self {
        let mut monitor = Monitor::default();
        let [receive, transmit, connect, accept] =
            ["receive", "transmit", "connect", "accept"].map(|name| monitor.operation(name));
        let streams = monitor.streams();
        Self {
            monitor: Arc::new(monitor),
            receive,
            transmit,
            connect,
            accept,
            streams,
        }
    }
}

impl Counts {
    /// The guest got a packet with so many bytes of data.
    pub(super) fn received(&self, bytes: u64) {
        self.receive.succeed(bytes);
    }

    /// The guest has sent a packet with so many bytes of data; `None`: not all of them. `served`: it made sense.
    pub(super) fn transmitted(&self, bytes: Option<usize>, served: bool) {
        match bytes {
            Some(bytes) if served => self.transmit.succeed(bytes as u64),
            _ => self.transmit.fail(),
        }
    }

    /// The guest has connected to a program of the host, or tried to.
    pub(super) fn connected(&self, done: bool) {
        if done {
            self.connect.succeed(0);
        } else {
            self.connect.fail();
        }
    }

    /// A program of the host connects to the guest.
    pub(super) fn accepted(&self) {
        self.accept.succeed(0);
    }
}
