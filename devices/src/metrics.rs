//! What is counted where it happens, and what others read of it.
//!
//! A counter has one writer, its thread, which only loads and stores it: readers see a value that was true a
//! moment ago, and the writer pays next to nothing. What is read is plain data, with or without the devices
//! themselves.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A number that one thread counts and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it. Only its own thread may call this.
    pub fn add(&self, amount: u64) {
        let before = self.0.load(Ordering::Relaxed);
        self.0.store(before.wrapping_add(amount), Ordering::Relaxed);
    }

    /// Makes it this number. Only its own thread may call this.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The number a moment ago.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The longest times, in microseconds, of the buckets of [`Latencies`]: powers of two from 16 µs to 8 s.
pub const LATENCY_BOUNDS_US: [u64; BOUNDS] = {
    let mut bounds = [SHORTEST_US; BOUNDS];
    let mut number = 1;
    while number < BOUNDS {
        bounds[number] = bounds[number - 1] * 2;
        number += 1;
    }
    bounds
};
const BOUNDS: usize = 20;
/// A power of two.
const SHORTEST_US: u64 = 1 << SHORTEST_BITS;
const SHORTEST_BITS: u32 = 4;

/// How many things took how long; one thread counts.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last one has what took longer than all bounds.
    buckets: [Counter; BOUNDS + 1],
    sum_us: Counter,
}

impl Histogram {
    /// Counts something that took so long.
    pub fn record(&self, time: Duration) {
        let micros = micros(time);
        // As many as it takes to double the shortest bound up to it.
        let above = micros.saturating_sub(1) >> SHORTEST_BITS;
        let number = (u64::BITS - above.leading_zeros()) as usize;
        if let Some(bucket) = self.buckets.get(number.min(BOUNDS)) {
            bucket.add(1);
        }
        self.sum_us.add(micros);
    }

    /// What was counted so far.
    #[must_use]
    pub fn read(&self) -> Latencies {
        let counts = self.buckets.each_ref().map(Counter::get);
        let buckets = LATENCY_BOUNDS_US.into_iter().zip(counts);
        Latencies {
            count: counts.iter().fold(0, |sum, count| sum.wrapping_add(*count)),
            sum_us: self.sum_us.get(),
            buckets: buckets
                .filter(|(_, count)| *count > 0)
                .map(|(up_to_us, count)| Bucket { up_to_us, count })
                .collect(),
        }
    }
}

/// How long things took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Latencies {
    /// How many there were.
    pub count: u64,
    /// How long all of them took together, in microseconds.
    pub sum_us: u64,
    /// How many of them took how long, from short to long, without the times that none took. What is missing to
    /// `count` took longer than the last of [`LATENCY_BOUNDS_US`].
    pub buckets: Vec<Bucket>,
}

/// Those that took longer than the bound before, and no longer than this one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Bucket {
    /// One of [`LATENCY_BOUNDS_US`].
    pub up_to_us: u64,
    /// How many they are.
    pub count: u64,
}

/// One kind of what a device does; its thread counts.
#[derive(Debug, Default)]
pub struct Operation {
    /// How often, failures included.
    pub requests: Counter,
    /// Bytes of data that were moved.
    pub bytes: Counter,
    /// How often it failed.
    pub errors: Counter,
    latency: Option<Histogram>,
}

impl Operation {
    /// Also says how long it takes.
    #[must_use]
    pub fn timed() -> Self {
        Self {
            latency: Some(Histogram::default()),
            ..Self::default()
        }
    }

    /// It was done, and so many bytes were moved.
    pub fn succeed(&self, bytes: u64) {
        self.requests.add(1);
        self.bytes.add(bytes);
    }

    /// It was tried.
    pub fn fail(&self) {
        self.requests.add(1);
        self.errors.add(1);
    }

    /// It took so long, if somebody wants to know.
    pub fn took(&self, time: Duration) {
        if let Some(latency) = &self.latency {
            latency.record(time);
        }
    }

    /// What was counted so far.
    #[must_use]
    pub fn read(&self) -> OperationMetrics {
        OperationMetrics {
            requests: self.requests.get(),
            bytes: self.bytes.get(),
            errors: self.errors.get(),
            latency: self.latency.as_ref().map(Histogram::read),
        }
    }
}

/// What a device has done of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct OperationMetrics {
    /// How often: requests of the driver that were answered, frames, packets; failures included.
    pub requests: u64,
    /// Bytes of data that were moved for them.
    pub bytes: u64,
    /// How many of them failed: the driver got an error for an answer, or something was dropped.
    pub errors: u64,
    /// How long they took from the queue to the answer, where that is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latencies>,
}

/// What a device has done since it was made; neither a reset by its driver nor a restart of the guest begins anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
#[non_exhaustive]
pub struct DeviceMetrics {
    /// What it does, by kinds.
    pub operations: BTreeMap<String, OperationMetrics>,
    /// How often it had something for its driver, or its driver for it, and there was no room.
    pub stalls: u64,
    /// How often its limits held something back.
    pub limiter_waits: u64,
    /// How long its limits held something back, in microseconds.
    pub limiter_wait_us: u64,
    /// How often the driver has notified it of each queue, up to the last one of which it did.
    pub notifications: Vec<u64>,
    /// How often the driver was interrupted for what its queues have.
    pub interrupts: u64,
    /// How often the driver was interrupted for a change of the configuration.
    pub config_interrupts: u64,
    /// How often a driver became ready.
    pub drivers: u64,
    /// How often it needed a reset by its driver.
    pub needs_resets: u64,
    /// How often the host failed it.
    pub host_errors: u64,
    /// Connections that are open now, where it has such.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<u64>,
}

/// A time in whole microseconds.
#[must_use]
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(latencies: &Latencies) -> Vec<(u64, u64)> {
        let buckets = latencies.buckets.iter();
        buckets
            .map(|bucket| (bucket.up_to_us, bucket.count))
            .collect()
    }

    #[test]
    fn times_are_counted_up_to_their_bound() {
        assert_eq!(LATENCY_BOUNDS_US[0], 16);
        assert_eq!(LATENCY_BOUNDS_US[BOUNDS - 1], 8_388_608);
        let histogram = Histogram::default();
        for micros in [0, 1, 16, 17, 32, 33] {
            histogram.record(Duration::from_micros(micros));
        }
        let read = histogram.read();
        assert_eq!(buckets(&read), [(16, 3), (32, 2), (64, 1)]);
        assert_eq!((read.count, read.sum_us), (6, 99));
        for (number, bound) in LATENCY_BOUNDS_US.into_iter().enumerate() {
            let histogram = Histogram::default();
            histogram.record(Duration::from_micros(bound));
            assert_eq!(buckets(&histogram.read()), [(bound, 1)]);
            histogram.record(Duration::from_micros(bound + 1));
            let next = LATENCY_BOUNDS_US.get(number + 1);
            assert_eq!(
                histogram.read().buckets.get(1).map(|b| b.up_to_us),
                next.copied()
            );
            assert_eq!(histogram.read().count, 2);
        }
    }

    #[test]
    fn nothing_that_is_counted_overflows() {
        let histogram = Histogram::default();
        for _ in 0..3 {
            histogram.record(Duration::MAX);
        }
        let read = histogram.read();
        assert_eq!((read.count, buckets(&read)), (3, vec![]));
        let counter = Counter::default();
        counter.add(u64::MAX);
        counter.add(2);
        assert_eq!(counter.get(), 1);
    }
}
