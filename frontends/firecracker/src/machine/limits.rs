//! Rate limiters, in the library's words.

use vmm_reference::{Change, Direction, Limits, LimitsChange, Rate};

use crate::api::bodies::{RateLimiterConfig, TokenBucketConfig};

/// The most that a bucket of the library has, and the least.
const MOST: u64 = 1 << 50;

/// The limits of a device that has none yet.
pub(super) fn limits(config: Option<&RateLimiterConfig>) -> Limits {
    let mut limits = Limits::default();
    let config = config.copied().unwrap_or_default();
    if let Some(bucket) = config.bandwidth.filter(is_on) {
        limits.bw = Some(within(bucket.size));
        limits.bw_refill = Some(within(bucket.refill_time));
        limits.bw_once = once(bucket);
    }
    if let Some(bucket) = config.ops.filter(is_on) {
        limits.iops = Some(within(bucket.size));
        limits.iops_refill = Some(within(bucket.refill_time));
        limits.iops_once = once(bucket);
    }
    limits
}

/// A bucket without a size, or that never fills, is none.
fn is_on(bucket: &TokenBucketConfig) -> bool {
    bucket.size != 0 && bucket.refill_time != 0
}

/// A limiter as clients are shown it: without what is none.
pub(super) fn shown(config: Option<RateLimiterConfig>) -> Option<RateLimiterConfig> {
    let bucket = |bucket: TokenBucketConfig| TokenBucketConfig {
        one_time_burst: bucket.one_time_burst.filter(|burst| *burst != 0),
        ..bucket
    };
    let config = config?;
    let shown = RateLimiterConfig {
        bandwidth: config.bandwidth.filter(is_on).map(bucket),
        ops: config.ops.filter(is_on).map(bucket),
    };
    let is_any = shown.bandwidth.is_some() || shown.ops.is_some();
    is_any.then_some(shown)
}

fn within(amount: u64) -> u64 {
    amount.min(MOST)
}

fn once(bucket: TokenBucketConfig) -> Option<u64> {
    bucket
        .one_time_burst
        .filter(|burst| *burst != 0)
        .map(within)
}

/// What becomes of a limiter by a request that names these buckets: its configuration, and the change of the device.
/// `None`: it stays as it is.
pub(super) fn changed(
    now: Option<RateLimiterConfig>,
    update: Option<RateLimiterConfig>,
    direction: Option<Direction>,
) -> Option<(Option<RateLimiterConfig>, Change)> {
    let update = update.filter(|update| update.bandwidth.is_some() || update.ops.is_some())?;
    let now = now.unwrap_or_default();
    let after = shown(Some(RateLimiterConfig {
        bandwidth: update.bandwidth.or(now.bandwidth),
        ops: update.ops.or(now.ops),
    }));
    let rate = |bucket: TokenBucketConfig| {
        let mut rate = Rate::default();
        if is_on(&bucket) {
            rate.amount = within(bucket.size);
            rate.refill = Some(within(bucket.refill_time));
            rate.once = once(bucket);
        }
        rate
    };
    let change = LimitsChange {
        direction,
        bw: update.bandwidth.map(rate),
        iops: update.ops.map(rate),
    };
    Some((after, Change::AdjustLimits(change)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn bucket(size: u64, one_time_burst: Option<u64>, refill_time: u64) -> TokenBucketConfig {
        TokenBucketConfig {
            size,
            one_time_burst,
            refill_time,
        }
    }

    #[test]
    fn buckets_are_those_of_the_library() {
        let config = RateLimiterConfig {
            bandwidth: Some(bucket(1000, Some(5), 100)),
            ops: Some(bucket(7, Some(0), 1)),
        };
        let limits = limits(Some(&config));
        assert_eq!(
            (limits.bw, limits.bw_refill, limits.bw_once),
            (Some(1000), Some(100), Some(5))
        );
        assert_eq!((limits.iops, limits.iops_once), (Some(7), None));
        assert_eq!(limits.check(), Ok(()));
        // None, and switched off.
        for off in [bucket(0, None, 100), bucket(100, None, 0)] {
            let config = RateLimiterConfig {
                bandwidth: Some(off),
                ops: None,
            };
            assert_eq!(super::limits(Some(&config)), Limits::default());
        }
        let huge = RateLimiterConfig {
            bandwidth: Some(bucket(u64::MAX, Some(u64::MAX), u64::MAX)),
            ops: None,
        };
        assert_eq!(super::limits(Some(&huge)).check(), Ok(()));
    }

    #[test]
    fn a_bucket_that_is_not_named_stays() {
        let now = RateLimiterConfig {
            bandwidth: Some(bucket(1000, None, 100)),
            ops: Some(bucket(7, None, 1)),
        };
        assert_eq!(changed(Some(now), None, None), None);
        assert_eq!(
            changed(Some(now), Some(RateLimiterConfig::default()), None),
            None
        );
        let update = RateLimiterConfig {
            bandwidth: None,
            ops: Some(bucket(0, None, 0)),
        };
        let (after, change) = changed(Some(now), Some(update), Some(Direction::Rx)).unwrap();
        let after = after.unwrap();
        assert_eq!((after.bandwidth, after.ops), (now.bandwidth, None));
        assert_eq!(change.check(), Ok(()));
        let Change::AdjustLimits(change) = change else {
            panic!("{change:?}");
        };
        assert_eq!((change.bw, change.iops.unwrap().amount), (None, 0));
        assert_eq!(change.direction, Some(Direction::Rx));
    }
}
