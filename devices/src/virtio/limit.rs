//! Limits of what a device may do: token buckets, and a timer for when there is some again.
//!
//! A request that was begun is charged in full, so that a level may fall below zero: what is larger
//! than the bucket passes too, and the pause after it makes up for it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Monitor;
use super::timer::Timer;
use crate::config::Limits;
use crate::metrics::micros;
use crate::state::{LimiterState, StateError};

/// Tokens are counted in billionths, so that no time is lost to rounding.
const UNIT: i128 = 1_000_000_000;

#[derive(Debug)]
struct Bucket {
    per_second: i128,
    capacity: i128,
    level: i128,
    filled: Instant,
}

impl Bucket {
    fn new(per_second: Option<u64>, burst: Option<u64>, now: Instant) -> Option<Self> {
        let per_second = per_second?;
        let capacity = i128::from(burst.unwrap_or(per_second)) * UNIT;
        Some(Self {
            per_second: per_second.into(),
            capacity,
            level: capacity,
            filled: now,
        })
    }

    fn level_at(&self, now: Instant) -> i128 {
        let passed = now.saturating_duration_since(self.filled).as_nanos();
        let gained = i128::try_from(passed)
            .unwrap_or(i128::MAX)
            .saturating_mul(self.per_second);
        self.level.saturating_add(gained).min(self.capacity)
    }

    /// How long until something may go.
    fn wait(&mut self, now: Instant) -> Duration {
        self.level = self.level_at(now);
        self.filled = now;
        if self.level > 0 {
            return Duration::ZERO;
        }
        let nanos = (1 - self.level).div_euclid(self.per_second.max(1)) + 1;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn charge(&mut self, amount: u64) {
        self.level = self.level.saturating_sub(i128::from(amount) * UNIT);
    }
}

/// The limits of one device.
#[derive(Debug)]
pub(super) struct Limiter {
    bytes: Option<Bucket>,
    requests: Option<Bucket>,
    timer: Timer,
    /// The timer is set.
    waiting: bool,
    /// The last refusal.
    refused: Option<Instant>,
    /// Since when something waits, as far as that was counted.
    held: Option<Instant>,
    monitor: Arc<Monitor>,
}

impl Limiter {
    /// Also with no limits, which may come later.
    pub(super) fn new(limits: &Limits, monitor: &Arc<Monitor>) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            bytes: Bucket::new(limits.bw, limits.bw_burst, now),
            requests: Bucket::new(limits.iops, limits.iops_burst, now),
            timer: Timer::new()?,
            waiting: false,
            refused: None,
            held: None,
            monitor: Arc::clone(monitor),
        })
    }

    /// Other limits from now on. What was used up of the old ones stays used: who changes them often gains nothing
    /// by it. The timer fires at once, for what waits.
    pub(super) fn change(&mut self, limits: &Limits) {
        self.change_at(limits, Instant::now());
    }

    fn change_at(&mut self, limits: &Limits, now: Instant) {
        for (bucket, rate, burst) in [
            (&mut self.bytes, limits.bw, limits.bw_burst),
            (&mut self.requests, limits.iops, limits.iops_burst),
        ] {
            let new = Bucket::new(rate, burst, now);
            *bucket = match (bucket.take(), new) {
                (Some(mut old), Some(new)) => {
                    // Up to now by the old rate.
                    old.wait(now);
                    let level = old.level.min(new.capacity);
                    Some(Bucket { level, ..new })
                }
                (_, new) => new,
            };
        }
        self.let_go(now);
        self.waiting = self.timer.set(Duration::from_nanos(1));
    }

    /// The limits, and what is left of them.
    pub(super) fn save(&self) -> LimiterState {
        let now = Instant::now();
        let of = |bucket: Option<&Bucket>| {
            let Some(bucket) = bucket else {
                return (None, None, None);
            };
            let whole = |tokens: i128| u64::try_from(tokens).ok();
            let level = bucket.level_at(now).div_euclid(UNIT);
            let level = i64::try_from(level).unwrap_or(i64::MIN);
            let burst = whole(bucket.capacity / UNIT);
            (whole(bucket.per_second), burst, Some(level))
        };
        let (bw, bw_burst, bytes) = of(self.bytes.as_ref());
        let (iops, iops_burst, requests) = of(self.requests.as_ref());
        LimiterState {
            limits: Limits {
                bw,
                bw_burst,
                iops,
                iops_burst,
            },
            bytes,
            requests,
        }
    }

    /// And back, into new ones.
    pub(super) fn load(&mut self, state: &LimiterState) -> Result<(), StateError> {
        let range = |_| StateError::Range("limits");
        state.limits.check().map_err(range)?;
        self.change(&state.limits);
        let buckets = [
            (&mut self.bytes, state.bytes),
            (&mut self.requests, state.requests),
        ];
        for (bucket, level) in buckets {
            match (bucket, level) {
                (Some(bucket), Some(level)) => {
                    bucket.level = (i128::from(level) * UNIT).min(bucket.capacity);
                }
                (None, None) => {}
                _ => return Err(StateError::Range("limits")),
            }
        }
        Ok(())
    }

    /// Becomes readable when something may go again after a refusal.
    pub(super) fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Whether a request may begin. After a refusal the timer runs.
    pub(super) fn allows(&mut self) -> bool {
        // Without limits, time is not even asked for.
        self.bytes.is_none() && self.requests.is_none() || self.allows_at(Instant::now())
    }

    fn allows_at(&mut self, now: Instant) -> bool {
        let buckets = self.bytes.iter_mut().chain(&mut self.requests);
        let wait = buckets
            .map(|bucket| bucket.wait(now))
            .max()
            .unwrap_or_default();
        if wait.is_zero() {
            self.let_go(now);
            return true;
        }
        self.refused = Some(now);
        if !self.waiting {
            self.waiting = self.timer.set(wait);
        }
        // Without a timer a limit would be an end.
        !self.waiting
    }

    /// Something waits for what was just refused. It is counted as one wait until something may go again.
    pub(super) fn hold(&mut self) {
        let Some(refused) = self.refused else {
            return;
        };
        match self.held.replace(refused) {
            Some(before) => self.count(before, refused),
            None => {
                self.monitor.limiter_waits.add(1);
                self.monitor.notices.limited();
            }
        }
    }

    /// Nothing waits any more: its driver has reset the device.
    pub(super) fn stop(&mut self) {
        if self.held.is_some() {
            self.let_go(Instant::now());
        }
    }

    fn let_go(&mut self, now: Instant) {
        if let Some(before) = self.held.take() {
            self.count(before, now);
        }
    }

    fn count(&self, from: Instant, to: Instant) {
        let waited = micros(to.saturating_duration_since(from));
        self.monitor.limiter_wait_us.add(waited);
    }

    /// The timer has fired, or anything else has happened: what is refused from now on sets it
    /// again.
    pub(super) fn woken(&mut self) {
        self.waiting = false;
    }

    /// A request of so many bytes has begun.
    pub(super) fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.charge(bytes);
        }
        if let Some(bucket) = &mut self.requests {
            bucket.charge(1);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn limiter(bw: Option<u64>, burst: Option<u64>, iops: Option<u64>) -> Limiter {
        let limits = Limits {
            bw,
            bw_burst: burst,
            iops,
            iops_burst: None,
        };
        Limiter::new(&limits, &Arc::default()).unwrap()
    }

    #[test]
    fn without_limits_everything_may_go() {
        let mut limiter = limiter(None, None, None);
        limiter.charge(u64::MAX);
        assert!(limiter.allows() && !limiter.waiting);
    }

    #[test]
    fn other_limits_hold_at_once_and_forgive_nothing() {
        let limits = |bw| Limits {
            bw: Some(bw),
            ..Limits::default()
        };
        let now = Instant::now();
        let mut limiter = limiter(Some(1), None, None);
        assert!(limiter.allows_at(now));
        limiter.charge(1001);
        assert!(!limiter.allows_at(now), "for a quarter of an hour");
        limiter.change_at(&limits(1000), now);
        assert!(limiter.waiting, "the timer runs, for what waits");
        limiter.woken();
        assert!(!limiter.allows_at(now + Duration::from_millis(999)));
        limiter.woken();
        assert!(limiter.allows_at(now + Duration::from_millis(1002)));
        // Asked for every millisecond, they give no more than once.
        let mut moved = 0;
        for millis in 2000..3000 {
            let now = now + Duration::from_millis(millis);
            limiter.change_at(&limits(1000), now);
            while limiter.allows_at(now) {
                limiter.charge(10);
                moved += 10;
            }
            limiter.woken();
        }
        assert!((1990..=2020).contains(&moved), "{moved} in a second");
        limiter.change_at(&Limits::default(), now);
        limiter.woken();
        assert!(limiter.allows());
    }

    #[test]
    fn over_time_the_rate_is_kept_whatever_the_size_of_requests() {
        let mut limiter = limiter(Some(1000), Some(100), None);
        let start = Instant::now();
        let mut moved = 0;
        for millis in 0..10_000 {
            let now = start + Duration::from_millis(millis);
            // Larger than the bucket.
            while limiter.allows_at(now) {
                limiter.charge(700);
                moved += 700;
            }
        }
        assert!((10_000..=10_800).contains(&moved), "{moved} in 10 s");
    }

    #[test]
    fn a_wait_is_counted_once_and_for_as_long_as_something_waits() {
        let mut limiter = limiter(Some(1000), None, None);
        let (start, monitor) = (Instant::now(), Arc::clone(&limiter.monitor));
        let at = |millis| start + Duration::from_millis(millis);
        let counted = || {
            let read = monitor.read();
            (read.limiter_waits, read.limiter_wait_us)
        };
        assert!(limiter.allows_at(at(0)));
        limiter.charge(1000);
        // Nothing waits.
        assert!(!limiter.allows_at(at(0)));
        assert!(limiter.allows_at(at(1)));
        limiter.charge(501);
        assert_eq!(counted(), (0, 0));
        // Something does, and is looked at now and then.
        for millis in [1, 101, 201] {
            limiter.woken();
            assert!(!limiter.allows_at(at(millis)));
            limiter.hold();
        }
        assert_eq!(counted(), (1, 200_000));
        assert!(limiter.allows_at(at(502)));
        assert_eq!(counted(), (1, 501_000));
        limiter.charge(501);
        // Other limits end a wait, and so does a reset.
        assert!(!limiter.allows_at(at(502)));
        limiter.hold();
        limiter.change_at(&Limits::default(), at(503));
        assert_eq!(counted(), (2, 502_000));
        limiter.stop();
        assert_eq!(counted(), (2, 502_000));
    }

    #[test]
    fn the_strictest_limit_counts_and_a_refusal_sets_the_timer() {
        let mut limiter = limiter(Some(1 << 40), None, Some(2));
        let now = Instant::now();
        for _ in 0..2 {
            assert!(limiter.allows_at(now));
            limiter.charge(1);
        }
        assert!(!limiter.allows_at(now) && limiter.waiting);
        limiter.woken();
        assert!(limiter.allows_at(now + Duration::from_millis(501)));
    }
}
