//! How far the writing of a saved machine has come, for those who wait, and whether anybody still does.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shared by the thread that writes and by those who look.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Of the file with RAM, in bytes.
    done: AtomicU64,
    cancelled: AtomicBool,
    over: AtomicBool,
}

impl Progress {
    /// What lies before this place is written.
    ///
    /// # Errors
    /// When nobody wants it any more.
    pub(super) fn reach(&self, place: u64) -> io::Result<()> {
        self.done.store(place, Ordering::Relaxed);
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("the machine has ended"));
        }
        Ok(())
    }

    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Nothing more is written.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}
