//! What a device is woken for, by number: the one name that queues, workers and devices have for it.

/// What wakes a running device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The driver filled this queue.
    Queue(usize),
    /// This one of [`super::VirtioDevice::sources`] became ready.
    Source(usize),
}
