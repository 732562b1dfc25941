//! The queues that a running device has, and the events that it wakes for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Event, Interrupt, QueueError, Ring};
use crate::state::QueueProgress;

/// The queues of a running device.
#[derive(Debug)]
pub struct Queues {
    /// `None` where the driver has set up none.
    rings: Vec<Option<Ring>>,
    pub(super) interrupt: Arc<Interrupt>,
    /// Seen between one request and the next, and between one event and the next.
    pub(super) stopping: Arc<AtomicBool>,
}

impl Queues {
    /// These queues, with the interrupt that they share.
    #[must_use]
    pub fn new(mut rings: Vec<Option<Ring>>, interrupt: Arc<Interrupt>) -> Self {
        let stopping = Arc::default();
        for ring in rings.iter_mut().flatten() {
            ring.heed(&stopping);
        }
        Self {
            rings,
            interrupt,
            stopping,
        }
    }

    /// Whether the device was told to stop: it begins nothing more.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// What tells the device to stop.
    #[cfg(test)]
    pub(crate) fn stopping(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stopping)
    }

    /// A queue, if the driver has set it up.
    pub fn ring(&mut self, queue: usize) -> Option<&mut Ring> {
        self.rings.get_mut(queue)?.as_mut()
    }

    /// How far a queue is, if the driver has set it up.
    pub(super) fn progress(&self, queue: usize) -> Option<QueueProgress> {
        self.rings.get(queue)?.as_ref().map(Ring::progress)
    }

    /// Nobody uses a queue any more.
    pub(super) fn close(&mut self, queue: usize) {
        if let Some(ring) = self.rings.get_mut(queue) {
            *ring = None;
        }
    }

    /// Shows the driver what was completed in all queues, with one interrupt if it wants any, or one
    /// for each of its messages.
    ///
    /// # Errors
    /// When a ring cannot be accessed.
    pub fn publish(&mut self) -> Result<(), QueueError> {
        let mut wanted = 0;
        for (number, ring) in self.rings.iter_mut().enumerate() {
            if let Some(ring) = ring
                && ring.publish()?
            {
                wanted |= 1u32.unbounded_shl(u32::try_from(number).unwrap_or(u32::MAX));
            }
        }
        if wanted != 0 {
            self.interrupt.used(wanted);
        }
        Ok(())
    }

    /// Tells the driver that the configuration space has changed.
    pub fn config_changed(&self) {
        self.interrupt.config_changed();
    }

    #[cfg(test)]
    pub(crate) fn interrupt_reasons(&self) -> u32 {
        self.interrupt.reasons.load(Ordering::SeqCst)
    }

    /// Asks for notifications of the queues that were found empty; gives those that no longer are.
    pub(super) fn rearm(&mut self) -> Result<Wanted, QueueError> {
        let mut wanted = Wanted::default();
        for (number, ring) in self.rings.iter_mut().enumerate() {
            if let Some(ring) = ring
                && ring.rearm()?
            {
                wanted.add(Event::Queue(number));
            }
        }
        Ok(wanted)
    }
}

/// A set of events. A bit each: queues first, then sources.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wanted(pub(super) u64);

/// The bit of the first source.
const SOURCES: u32 = 32;

impl Wanted {
    pub(super) fn bit(event: Event) -> u32 {
        let (first, number) = match event {
            Event::Queue(number) => (0, number),
            Event::Source(number) => (SOURCES, number),
        };
        first + u32::try_from(number).map_or(SOURCES - 1, |number| number.min(SOURCES - 1))
    }

    pub(super) fn event(bit: u32) -> Event {
        match bit.checked_sub(SOURCES) {
            None => Event::Queue(bit as usize),
            Some(source) => Event::Source(source as usize),
        }
    }

    pub(super) fn add(&mut self, event: Event) {
        self.0 |= 1 << Self::bit(event);
    }

    pub(super) fn take(&mut self) -> Option<Event> {
        let bit = self.0.trailing_zeros();
        (self.0 != 0).then(|| {
            self.0 &= self.0 - 1;
            Self::event(bit)
        })
    }
}
