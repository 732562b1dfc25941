//! What is worth a line in the log, of that which a guest can cause at will.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what a guest can cause at will, so that it does not fill the log: the first time is worth
/// a line, then every power of two.
#[derive(Debug, Default)]
pub struct Rare(AtomicU64);

impl Rare {
    /// It has not happened yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// It happened again. Says how often so far when that is worth a line.
    pub fn again(&self) -> Option<u64> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let times = before.saturating_add(1);
        times.is_power_of_two().then_some(times)
    }

    /// As [`Self::again`], where the first `few` times are worth a line each.
    pub fn again_after(&self, few: u64) -> Option<u64> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let times = before.saturating_add(1);
        (times <= few || times.is_power_of_two()).then_some(times)
    }
}
