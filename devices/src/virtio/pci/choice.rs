//! Which messages the driver has chosen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::pci::Vectors;

/// No message.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Which messages the driver has chosen.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(super) vectors: Arc<Vectors>,
    pub(super) config: AtomicU16,
    pub(super) queues: Vec<AtomicU16>,
}

impl Choice {
    pub(super) fn new(vectors: Arc<Vectors>, queues: usize) -> Self {
        Self {
            vectors,
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        }
    }

    /// Chooses a message; one that there is not is none.
    pub(super) fn choose(&self, place: Option<&AtomicU16>, vector: u16) {
        if let Some(place) = place {
            let known = usize::from(vector) < self.vectors.count();
            let vector = if known { vector } else { NO_VECTOR };
            place.store(vector, Ordering::SeqCst);
        }
    }

    pub(super) fn reset(&self) {
        for place in self.queues.iter().chain([&self.config]) {
            place.store(NO_VECTOR, Ordering::SeqCst);
        }
    }

    pub(crate) fn raise_config(&self) {
        self.vectors.raise(self.config.load(Ordering::SeqCst));
    }

    /// For these queues, a bit each: a message that several share is sent once.
    pub(crate) fn raise_queues(&self, queues: u32) {
        let mut messages = 0u64;
        for (number, place) in (0u32..).zip(&self.queues) {
            if queues & 1u32.unbounded_shl(number) != 0 {
                let vector = place.load(Ordering::SeqCst);
                messages |= 1u64.unbounded_shl(vector.into());
            }
        }
        while messages != 0 {
            let vector = messages.trailing_zeros();
            messages &= messages - 1;
            self.vectors
                .raise(u16::try_from(vector).unwrap_or(NO_VECTOR));
        }
    }
}
