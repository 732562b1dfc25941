//! Limits of what a device may do: token buckets, and a timer for when there is some again.
//!
//! A request that was begun is charged in full, so that a level may fall below zero: what is larger
//! than the bucket passes too, and the pause after it makes up for it.
//!
//! Levels are counted in tokens times the nanoseconds of a refill, so that no time is lost to rounding.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Monitor;
use super::timer::Timer;
use crate::config::{Limits, LimitsChange, Rate};
use crate::metrics::micros;
use crate::state::{LimiterState, StateError};
#[cfg(any(feature = "virtio-blk", feature = "virtio-rng"))]
use crate::{Change, ChangeError};

/// The time of a refill, in milliseconds, where nothing is said of it.
const SECOND: u64 = 1000;
const NANOS_PER_MILLI: i128 = 1_000_000;

#[derive(Debug)]
struct Bucket {
    /// Tokens of a refill.
    amount: i128,
    /// Its time in nanoseconds.
    refill: i128,
    capacity: i128,
    level: i128,
    /// Tokens that are used before those, and do not come again.
    once: u64,
    filled: Instant,
}

impl Bucket {
    fn new(rate: &Rate, now: Instant) -> Option<Self> {
        let refill = i128::from(rate.refill.unwrap_or(SECOND)) * NANOS_PER_MILLI;
        let capacity = i128::from(rate.burst.unwrap_or(rate.amount)) * refill;
        (rate.amount > 0).then(|| Self {
            amount: rate.amount.into(),
            refill,
            capacity,
            level: capacity,
            once: rate.once.unwrap_or_default(),
            filled: now,
        })
    }

    /// Another one in its place. What was used up stays used: who changes limits often gains nothing by it.
    fn replaced(old: Option<Self>, rate: Option<&Rate>, now: Instant) -> Option<Self> {
        let mut new = Self::new(rate?, now)?;
        if let Some(old) = old {
            // Up to now by the old rate.
            let level = old.level_at(now);
            let level = if old.refill == new.refill {
                level
            } else {
                level.div_euclid(old.refill).saturating_mul(new.refill)
            };
            new.level = level.min(new.capacity);
        }
        Some(new)
    }

    fn rate(&self) -> Rate {
        let whole = |tokens: i128| u64::try_from(tokens).ok();
        Rate {
            amount: whole(self.amount).unwrap_or_default(),
            burst: whole(self.capacity / self.refill),
            refill: whole(self.refill / NANOS_PER_MILLI),
            once: Some(self.once).filter(|once| *once > 0),
        }
    }

    fn level_at(&self, now: Instant) -> i128 {
        let passed = now.saturating_duration_since(self.filled).as_nanos();
        let gained = i128::try_from(passed)
            .unwrap_or(i128::MAX)
            .saturating_mul(self.amount);
        self.level.saturating_add(gained).min(self.capacity)
    }

    /// How long until something may go.
    fn wait(&mut self, now: Instant) -> Duration {
        self.level = self.level_at(now);
        self.filled = now;
        if self.level > 0 || self.once > 0 {
            return Duration::ZERO;
        }
        let missing = 1i128.saturating_sub(self.level);
        let nanos = missing.div_euclid(self.amount).saturating_add(1);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn charge(&mut self, amount: u64) {
        let beforehand = amount.min(self.once);
        self.once -= beforehand;
        let rest = i128::from(amount - beforehand).saturating_mul(self.refill);
        self.level = self.level.saturating_sub(rest);
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
        let new = |rate: Option<Rate>| Bucket::new(&rate?, now);
        let [bytes, requests] = limits.rates();
        Ok(Self {
            bytes: new(bytes),
            requests: new(requests),
            timer: Timer::new()?,
            waiting: false,
            refused: None,
            held: None,
            monitor: Arc::clone(monitor),
        })
    }

    /// Other limits from now on. The timer fires at once, for what waits.
    pub(super) fn change(&mut self, limits: &Limits) {
        self.change_at(limits, Instant::now());
    }

    fn change_at(&mut self, limits: &Limits, now: Instant) {
        let [bytes, requests] = limits.rates();
        self.bytes = Bucket::replaced(self.bytes.take(), bytes.as_ref(), now);
        self.requests = Bucket::replaced(self.requests.take(), requests.as_ref(), now);
        self.changed(now);
    }

    /// The same for what is named, and the rest as it is.
    pub(super) fn adjust(&mut self, change: &LimitsChange) {
        self.adjust_at(change, Instant::now());
    }

    /// Carries out a change of a device that has nothing to be changed but limits, without a direction.
    #[cfg(any(feature = "virtio-blk", feature = "virtio-rng"))]
    pub(super) fn carry_out(&mut self, change: &Change) -> Result<(), ChangeError> {
        match change {
            Change::Limits(limits) => self.change(limits),
            Change::AdjustLimits(change) if change.direction.is_some() => {
                let cause = "it has no directions: leave the direction away";
                return Err(ChangeError::Refused(cause.to_owned()));
            }
            Change::AdjustLimits(change) => self.adjust(change),
            _ => return Err(ChangeError::Foreign),
        }
        Ok(())
    }

    fn adjust_at(&mut self, change: &LimitsChange, now: Instant) {
        for (bucket, rate) in [
            (&mut self.bytes, &change.bw),
            (&mut self.requests, &change.iops),
        ] {
            if rate.is_some() {
                *bucket = Bucket::replaced(bucket.take(), rate.as_ref(), now);
            }
        }
        self.changed(now);
    }

    fn changed(&mut self, now: Instant) {
        self.let_go(now);
        self.waiting = self.timer.set(Duration::from_nanos(1));
    }

    /// The limits, and what is left of them.
    pub(super) fn save(&self) -> LimiterState {
        let now = Instant::now();
        let buckets = [self.bytes.as_ref(), self.requests.as_ref()];
        let level = |bucket: &Bucket| {
            let tokens = bucket.level_at(now).div_euclid(bucket.refill);
            i64::try_from(tokens).unwrap_or(i64::MIN)
        };
        let [bytes, requests] = buckets.map(|bucket| bucket.map(level));
        LimiterState {
            limits: Limits::of_rates(buckets.map(|bucket| bucket.map(Bucket::rate))),
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
                    let level = i128::from(level).saturating_mul(bucket.refill);
                    bucket.level = level.min(bucket.capacity);
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
            ..Limits::default()
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

    /// Bytes that go at each of these milliseconds, as much as may.
    fn moved(limiter: &mut Limiter, start: Instant, millis: std::ops::Range<u64>) -> u64 {
        let mut moved = 0;
        for millis in millis {
            while limiter.allows_at(start + Duration::from_millis(millis)) {
                limiter.charge(10);
                moved += 10;
            }
            limiter.woken();
        }
        moved
    }

    #[test]
    fn a_bucket_has_a_size_a_time_of_refill_and_what_may_go_once() {
        let limits = Limits::default()
            .with_bw(1000)
            .with_bw_refill(250)
            .with_bw_once(5000);
        let mut limiter = Limiter::new(&limits, &Arc::default()).unwrap();
        let start = Instant::now();
        assert_eq!(moved(&mut limiter, start, 0..1), 6000);
        let rest = moved(&mut limiter, start, 1..1001);
        assert!((3980..=4020).contains(&rest), "{rest}");
        // Slower than one a second.
        let slow = Limits::default().with_iops(1).with_iops_refill(1500);
        let mut limiter = Limiter::new(&slow, &Arc::default()).unwrap();
        let slowly = moved(&mut limiter, start, 0..15_000);
        assert!((100..=110).contains(&slowly), "{slowly}");
        // What may go once goes on in another machine, and no more of it than is left.
        let mut limiter = Limiter::new(&limits, &Arc::default()).unwrap();
        limiter.charge(3000);
        let mut other = Limiter::new(&Limits::default(), &Arc::default()).unwrap();
        other.load(&limiter.save()).unwrap();
        assert_eq!(
            other.save().limits,
            limits.with_bw_burst(1000).with_bw_once(2000)
        );
        let now = Instant::now();
        let moved = moved(&mut other, now, 0..1);
        assert!((3000..=3010).contains(&moved), "{moved}");
    }

    #[test]
    fn what_a_change_does_not_name_stays_and_0_takes_a_limit_away() {
        let now = Instant::now();
        let change = |text| LimitsChange::parse(None, text).unwrap();
        let mut limiter = limiter(Some(1000), None, Some(10));
        limiter.charge(1000);
        limiter.adjust_at(&change("iops=20"), now);
        let saved = limiter.save();
        assert_eq!((saved.limits.bw, saved.limits.iops), (Some(1000), Some(20)));
        assert!(!limiter.allows_at(now), "the bytes are used up");
        limiter.adjust_at(&change("bw=0"), now);
        limiter.woken();
        assert!(limiter.allows_at(now));
        let saved = limiter.save();
        assert_eq!((saved.limits.bw, saved.limits.iops), (None, Some(20)));
        assert_eq!(saved.requests, Some(9), "of the ten that there were");
        limiter.adjust_at(&change("bw=5,bw-once=7,iops=0"), now);
        let saved = limiter.save();
        assert_eq!((saved.limits.bw_once, saved.limits.iops), (Some(7), None));
    }

    #[test]
    fn the_largest_limits_overflow_nothing() {
        let most = 1 << 50;
        for (amount, refill) in [(most, most), (1, most), (most, 1)] {
            let limits = Limits::default()
                .with_bw(amount)
                .with_bw_burst(most)
                .with_bw_refill(refill)
                .with_bw_once(most);
            let mut limiter = Limiter::new(&limits, &Arc::default()).unwrap();
            let now = Instant::now();
            for _ in 0..4 {
                limiter.charge(u64::MAX);
                limiter.woken();
                assert!(!limiter.allows_at(now));
            }
            limiter.change_at(&Limits::default().with_bw(1), now);
            let state = limiter.save();
            limiter.load(&state).unwrap();
        }
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
