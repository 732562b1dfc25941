//! What time a restored guest finds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

/// What time a restored guest finds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RestoredClock {
    /// Its clocks go on where they stopped.
    #[default]
    Stopped,
    /// Its clocks have gone on meanwhile by the host's time of day, as if it had been paused: time is what it is, and all that
    /// was to happen in between happens at once.
    Realtime,
}

/// How long ago that was, which is said in milliseconds since 1970; `None` when it lies ahead.
pub(crate) fn since(saved_ms: u64) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    now.checked_sub(Duration::from_millis(saved_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_went_backwards_is_none_that_has_passed() {
        assert!(since(0) > Some(Duration::from_secs(50 * 365 * 24 * 3600)));
        assert_eq!(since(u64::MAX), None);
    }
}
