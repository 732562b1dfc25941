//! What the VMM sees of a device without asking it: counters and notices. A device keeps it for life, also when
//! its driver resets it or the guest starts again; it is read while the device runs, and when it is lost.

use std::sync::Arc;

use super::event::MOST_EVENTS;
use super::notice::Notices;
use crate::metrics::{Counter, DeviceMetrics, Operation};

/// What the VMM sees of a device. The counters have one writer, the device's thread, or whoever has the device
/// while it has no thread.
#[derive(Debug, Default)]
pub struct Monitor {
    operations: Vec<(&'static str, Arc<Operation>)>,
    /// How often there was something to move and no room for it.
    pub(crate) stalls: Counter,
    /// How often limits held something back, and how long, in microseconds.
    pub(crate) limiter_waits: Counter,
    pub(crate) limiter_wait_us: Counter,
    /// How often the driver has notified the device of each queue.
    notifications: [Counter; MOST_EVENTS],
    /// How often the driver was interrupted, for what its queues have, and for the configuration.
    pub(super) interrupts: Counter,
    pub(super) config_interrupts: Counter,
    /// Connections that are open, where the device has such.
    streams: Option<Arc<Counter>>,
    /// What the device tells.
    pub(crate) notices: Notices,
}

impl Monitor {
    /// Adds an operation, which the device counts.
    pub fn operation(&mut self, name: &'static str) -> Arc<Operation> {
        self.add(name, Operation::default())
    }

    /// Adds one that takes its time.
    pub fn timed_operation(&mut self, name: &'static str) -> Arc<Operation> {
        self.add(name, Operation::timed())
    }

    fn add(&mut self, name: &'static str, operation: Operation) -> Arc<Operation> {
        let operation = Arc::new(operation);
        self.operations.push((name, Arc::clone(&operation)));
        operation
    }

    /// The device has connections; it sets how many are open.
    pub fn streams(&mut self) -> Arc<Counter> {
        Arc::clone(self.streams.get_or_insert_default())
    }

    /// The driver has notified the device of a queue.
    pub(super) fn notified(&self, queue: usize) {
        if let Some(counter) = self.notifications.get(queue) {
            counter.add(1);
        }
    }

    /// What the device tells, for whoever wants to listen.
    #[must_use]
    pub fn notices(&self) -> &Notices {
        &self.notices
    }

    /// What was counted so far.
    #[must_use]
    pub fn read(&self) -> DeviceMetrics {
        let operations = self.operations.iter();
        let mut notifications = self.notifications.each_ref().map(Counter::get).to_vec();
        let used = notifications.iter().rposition(|number| *number > 0);
        notifications.truncate(used.map_or(0, |last| last + 1));
        let [drivers, needs_resets, host_errors] = self.notices.times();
        DeviceMetrics {
            operations: operations
                .map(|(name, operation)| ((*name).to_owned(), operation.read()))
                .collect(),
            stalls: self.stalls.get(),
            limiter_waits: self.limiter_waits.get(),
            limiter_wait_us: self.limiter_wait_us.get(),
            notifications,
            interrupts: self.interrupts.get(),
            config_interrupts: self.config_interrupts.get(),
            drivers,
            needs_resets,
            host_errors,
            streams: self.streams.as_deref().map(Counter::get),
        }
    }
}
