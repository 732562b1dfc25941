//! What a device tells the VMM of, from its own thread or a vCPU's, without knowing who listens.
//!
//! A guest can cause most of it as often as it likes: of each kind a device tells [`BURST`] times at once and then
//! once a second, and counts always.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::lock;

/// Something that happened to a device. `times` is how often it has happened so far.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A driver is ready, and uses the device.
    DriverReady {
        /// How often so far.
        times: u64,
    },
    /// The device does nothing before its driver resets it.
    NeedsReset {
        /// Why.
        cause: String,
        /// How often so far.
        times: u64,
    },
    /// A fault of the VMM has lost the device.
    Lost {
        /// What it was.
        cause: String,
    },
    /// The device's limits begin to hold something back.
    Limited {
        /// How often so far.
        times: u64,
    },
    /// The host has failed the device.
    HostError {
        /// How.
        cause: String,
        /// How often so far.
        times: u64,
    },
}

/// Who listens. It is called from threads of devices and vCPUs, and may not keep them waiting.
pub type Listener = Arc<dyn Fn(Notice) + Send + Sync>;

/// Notices of one kind that may come at once.
const BURST: u32 = 8;
/// Another one may come after each of these.
const PACE: Duration = Duration::from_secs(1);

/// One kind of notice.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Ready,
    NeedsReset,
    Limited,
    HostError,
}

/// How often a kind of notice has come, and how many more may.
#[derive(Debug, Default)]
struct Pace {
    times: u64,
    /// Those that came lately.
    recent: u32,
    /// When one of them was last forgotten.
    since: Option<Instant>,
}

impl Pace {
    /// It happened again. Says how often so far, when it is to be told.
    fn again(&mut self, now: Instant) -> Option<u64> {
        self.times = self.times.saturating_add(1);
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since).as_secs();
        if passed > 0 {
            let passed = u32::try_from(passed).unwrap_or(u32::MAX);
            self.recent = self.recent.saturating_sub(passed);
            self.since = since.checked_add(PACE.saturating_mul(passed)).or(Some(now));
        }
        if self.recent >= BURST {
            return None;
        }
        self.recent += 1;
        Some(self.times)
    }
}

#[derive(Default)]
struct State {
    listener: Option<Listener>,
    /// By kind.
    ready: Pace,
    needs_reset: Pace,
    limited: Pace,
    host_error: Pace,
}

impl State {
    fn pace(&mut self, kind: Kind) -> &mut Pace {
        match kind {
            Kind::Ready => &mut self.ready,
            Kind::NeedsReset => &mut self.needs_reset,
            Kind::Limited => &mut self.limited,
            Kind::HostError => &mut self.host_error,
        }
    }
}

/// A device's way to whoever listens.
#[derive(Default)]
pub struct Notices(Mutex<State>);

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notices").finish_non_exhaustive()
    }
}

impl Notices {
    /// Somebody listens from now on, in the place of who did before.
    pub fn listen(&self, listener: Listener) {
        lock(&self.0).listener = Some(listener);
    }

    /// A driver is ready.
    pub(crate) fn driver_ready(&self) {
        self.tell(Kind::Ready, |times| Notice::DriverReady { times });
    }

    /// The driver has to reset the device.
    pub(crate) fn needs_reset(&self, cause: &str) {
        self.tell(Kind::NeedsReset, |times| {
            let cause = cause.to_owned();
            Notice::NeedsReset { cause, times }
        });
    }

    /// A fault of the VMM: it happens once.
    pub(crate) fn lost(&self, cause: &str) {
        let listener = lock(&self.0).listener.clone();
        if let Some(listener) = listener {
            let cause = cause.to_owned();
            listener(Notice::Lost { cause });
        }
    }

    /// Limits begin to hold something back.
    #[cfg_attr(
        not(any(feature = "virtio-blk", feature = "virtio-net", feature = "virtio-rng")),
        allow(dead_code)
    )]
    pub(crate) fn limited(&self) {
        self.tell(Kind::Limited, |times| Notice::Limited { times });
    }

    /// The host has failed.
    #[cfg_attr(
        not(any(
            feature = "virtio-balloon",
            feature = "virtio-blk",
            feature = "virtio-net"
        )),
        allow(dead_code)
    )]
    pub(crate) fn host_error(&self, cause: &dyn fmt::Display) {
        self.tell(Kind::HostError, |times| {
            let cause = cause.to_string();
            Notice::HostError { cause, times }
        });
    }

    /// How often drivers became ready, the device needed a reset, and the host failed.
    pub(super) fn times(&self) -> [u64; 3] {
        let state = lock(&self.0);
        [&state.ready, &state.needs_reset, &state.host_error].map(|pace| pace.times)
    }

    /// `notice` gets how often it has happened; it is not called for what is only counted.
    fn tell(&self, kind: Kind, notice: impl FnOnce(u64) -> Notice) {
        let (times, listener) = {
            let mut state = lock(&self.0);
            let times = state.pace(kind).again(Instant::now());
            (times, state.listener.clone())
        };
        // Not under the lock: others of this device go on meanwhile.
        if let (Some(times), Some(listener)) = (times, listener) {
            listener(notice(times));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn some_come_at_once_and_then_one_a_second_however_often_it_happens() {
        let mut pace = Pace::default();
        let start = Instant::now();
        let told = |pace: &mut Pace, millis, count: usize| {
            let now = start + Duration::from_millis(millis);
            (0..count)
                .filter_map(|_| pace.again(now))
                .collect::<Vec<_>>()
        };
        assert_eq!(told(&mut pace, 0, 1000), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(told(&mut pace, 999, 1000).is_empty());
        assert_eq!(told(&mut pace, 1001, 1000), [2001]);
        assert!(told(&mut pace, 1999, 1).is_empty());
        assert_eq!(told(&mut pace, 2000, 1), [3002]);
        // Who was quiet for long may tell as much as at first, and no more.
        assert_eq!(told(&mut pace, 1_000_000, 1000).len(), 8);
        // An hour of floods.
        let told: usize = (0..36_000)
            .map(|tenth| told(&mut pace, 2_000_000 + tenth * 100, 3).len())
            .sum();
        assert!((3600..3620).contains(&told), "{told}");
        pace.times = u64::MAX;
        pace.again(start);
        assert_eq!(pace.times, u64::MAX);
    }

    #[test]
    fn each_kind_has_its_own_pace_and_what_nobody_hears_is_counted() {
        let notices = Notices::default();
        notices.driver_ready();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = Arc::clone(&heard);
        notices.listen(Arc::new(move |notice| lock(&ear).push(notice)));
        for _ in 0..100 {
            notices.needs_reset("a rule");
        }
        notices.driver_ready();
        notices.lost("a fault");
        let heard = std::mem::take(&mut *lock(&heard));
        assert_eq!(heard.len(), 10);
        let cause = "a rule".to_owned();
        assert_eq!(heard[0], Notice::NeedsReset { cause, times: 1 });
        assert_eq!(heard[8], Notice::DriverReady { times: 2 });
        let cause = "a fault".to_owned();
        assert_eq!(heard[9], Notice::Lost { cause });
        assert_eq!(notices.times(), [2, 100, 0]);
    }
}
