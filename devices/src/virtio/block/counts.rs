//! What a disk counts: its requests by kinds, and how long they take.
//!
//! Time is read once for all requests that begin or end together, and only when there are such: for each request
//! where each is a system call of its own.

use std::sync::Arc;
use std::time::Instant;

use vm_memory::GuestAddress;

use crate::metrics::Operation;
use crate::virtio::Monitor;

/// What kind of request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    Zero,
    Identify,
    /// Of no kind that the disk knows.
    Other,
}

/// How a request is answered, and counted then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    pub(super) head: u16,
    /// Where the status goes.
    pub(super) status: GuestAddress,
    pub(super) kind: Kind,
    pub(super) begun: Instant,
}

/// The counters of a disk.
#[derive(Debug)]
pub(super) struct Counts {
    pub(super) monitor: Arc<Monitor>,
    read: Arc<Operation>,
    write: Arc<Operation>,
    flush: Arc<Operation>,
    discard: Arc<Operation>,
    zero: Arc<Operation>,
    identify: Arc<Operation>,
    other: Arc<Operation>,
}

impl Default for Counts {
    fn default() -> Self {
        let mut monitor = Monitor::default();
        let [read, write, flush, discard, zero] =
            ["read", "write", "flush", "discard", "zero"].map(|name| monitor.timed_operation(name));
        let [identify, other] = ["identify", "other"].map(|name| monitor.operation(name));
        Self {
            monitor: Arc::new(monitor),
            read,
            write,
            flush,
            discard,
            zero,
            identify,
            other,
        }
    }
}

impl Counts {
    pub(super) fn of(&self, kind: Kind) -> &Operation {
        match kind {
            Kind::Read => &self.read,
            Kind::Write => &self.write,
            Kind::Flush => &self.flush,
            Kind::Discard => &self.discard,
            Kind::Zero => &self.zero,
            Kind::Identify => &self.identify,
            Kind::Other => &self.other,
        }
    }

    /// A request was answered at this time; `bytes`: so many were moved, or it failed.
    pub(super) fn answered(&self, answer: &Answer, bytes: Option<u64>, now: Instant) {
        let operation = self.of(answer.kind);
        match bytes {
            Some(bytes) => operation.succeed(bytes),
            None => operation.fail(),
        }
        operation.took(now.saturating_duration_since(answer.begun));
    }
}

/// The time, as it was when somebody last asked.
#[derive(Debug, Default)]
pub(super) struct Clock(Option<Instant>);

impl Clock {
    pub(super) fn now(&mut self) -> Instant {
        *self.0.get_or_insert_with(Instant::now)
    }

    /// Something has taken its time.
    pub(super) fn turn(&mut self) {
        self.0 = None;
    }
}
