//! Limits of what a device may do: token buckets, and a timer for when there is some again.
//!
//! A request that was begun is charged in full, so that a level may fall below zero: what is larger
//! than the bucket passes too, and the pause after it makes up for it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::config::Limits;

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

    /// How long until something may go.
    fn wait(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.filled).as_nanos();
        let gained = i128::try_from(passed)
            .unwrap_or(i128::MAX)
            .saturating_mul(self.per_second);
        self.level = self.level.saturating_add(gained).min(self.capacity);
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
    timer: OwnedFd,
    /// The timer is set.
    waiting: bool,
}

impl Limiter {
    /// `None` when nothing is limited.
    pub(super) fn new(limits: &Limits) -> io::Result<Option<Self>> {
        let now = Instant::now();
        let bytes = Bucket::new(limits.bw, limits.bw_burst, now);
        let requests = Bucket::new(limits.iops, limits.iops_burst, now);
        if bytes.is_none() && requests.is_none() {
            return Ok(None);
        }
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Some(Self {
            bytes,
            requests,
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            waiting: false,
        }))
    }

    /// Becomes readable when something may go again after a refusal.
    pub(super) fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Whether a request may begin. After a refusal the timer runs.
    pub(super) fn allows(&mut self) -> bool {
        self.allows_at(Instant::now())
    }

    fn allows_at(&mut self, now: Instant) -> bool {
        let buckets = self.bytes.iter_mut().chain(&mut self.requests);
        let wait = buckets
            .map(|bucket| bucket.wait(now))
            .max()
            .unwrap_or_default();
        if wait.is_zero() {
            return true;
        }
        if !self.waiting {
            self.waiting = set(&self.timer, wait);
        }
        // Without a timer a limit would be an end.
        !self.waiting
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

fn set(timer: impl AsFd, wait: Duration) -> bool {
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let Ok(value) = Timespec::try_from(wait) else {
        return false;
    };
    let once = Itimerspec {
        it_interval: zero,
        it_value: value,
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once).is_ok()
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
        Limiter::new(&limits).unwrap().unwrap()
    }

    #[test]
    fn no_limit_is_no_limiter() {
        assert!(Limiter::new(&Limits::default()).unwrap().is_none());
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
