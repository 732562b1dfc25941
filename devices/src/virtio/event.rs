//! What a device is woken for, by number: the one name that queues, workers and devices have for it.

/// The most queues of a device, and the most sources: each has a bit.
pub(crate) const MOST_EVENTS: usize = 32;

/// What wakes a running device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The driver filled this queue.
    Queue(usize),
    /// This one of [`super::VirtioDevice::sources`] became ready.
    Source(usize),
}
