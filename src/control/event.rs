//! What happens to a machine, for whoever wants to hear of it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use devices::micros;

use crate::Error;
use crate::control::command::State;
use crate::wake::Wake;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

/// Events kept for a subscriber who does not fetch them.
const KEPT: usize = 256;

/// Something that happened, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Event {
    /// What happened.
    #[serde(flatten)]
    pub what: Happening,
    /// Microseconds since the machine was built (CLOCK_MONOTONIC).
    pub monotonic_us: u64,
    /// Milliseconds since 1970 (CLOCK_REALTIME).
    pub time_ms: u64,
}

/// What can happen to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Happening {
    /// The machine is in another state.
    State {
        /// The new one.
        state: State,
    },
    /// The guest was asked to power itself off.
    ShutdownAsked {
        /// How long it may take, in milliseconds.
        timeout_ms: u64,
    },
    /// The machine starts again.
    Restart {
        /// How often it has done so.
        restarts: u64,
    },
    /// The guest has crashed, or told of it.
    GuestCrashed {
        /// The vCPU that crashed, or told of it.
        vcpu: u32,
        /// `triple-fault`, `panic` or `system-event`.
        cause: String,
    },
    /// A driver is ready, and uses a device.
    DriverReady {
        /// The device's id.
        device: String,
        /// How often that has happened to the device so far.
        times: u64,
    },
    /// The driver of a device broke a rule, or the device cannot start: it waits for the driver's reset.
    NeedsReset {
        /// The device's id.
        device: String,
        /// What happened.
        cause: String,
        /// How often that has happened to the device so far.
        times: u64,
    },
    /// A fault of the VMM has lost a device.
    DeviceLost {
        /// The device's id.
        device: String,
        /// What happened.
        cause: String,
    },
    /// A command has changed a device.
    DeviceChanged {
        /// The device's id.
        device: String,
        /// The change, as [`Change`](crate::Change) shows it.
        change: String,
    },
    /// The limits of a device begin to hold something back.
    Limited {
        /// The device's id.
        device: String,
        /// How often that has happened to the device so far.
        times: u64,
    },
    /// The host has failed a device, or a console's output.
    Error {
        /// The device's id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
        /// What happened.
        cause: String,
        /// How often that has happened to the device so far.
        times: u64,
    },
    /// A fork of the machine goes on, as a process of its own.
    Forked {
        /// The process.
        pid: u32,
    },
    /// The process of a fork has ended.
    ForkEnded {
        /// The process.
        pid: u32,
        /// How: `exit status N`, or `signal N`.
        status: String,
    },
    /// The VM has ended; no event comes after it.
    Ended {
        /// Why, as a part of a sentence.
        reason: String,
        /// It ended by a failure or a crash.
        failed: bool,
    },
    /// The subscriber has not fetched events fast enough.
    Lost {
        /// How many are missing here.
        count: u64,
    },
}

impl Happening {
    /// The names of all.
    #[cfg_attr(not(feature = "control"), allow(dead_code))]
    pub(crate) const NAMES: [&str; 14] = [
        "state",
        "shutdown-asked",
        "restart",
        "guest-crashed",
        "driver-ready",
        "needs-reset",
        "device-lost",
        "device-changed",
        "limited",
        "error",
        "forked",
        "fork-ended",
        "ended",
        "lost",
    ];

    /// The kind of event, as it is written.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::State { .. } => "state",
            Self::ShutdownAsked { .. } => "shutdown-asked",
            Self::Restart { .. } => "restart",
            Self::GuestCrashed { .. } => "guest-crashed",
            Self::DriverReady { .. } => "driver-ready",
            Self::NeedsReset { .. } => "needs-reset",
            Self::DeviceLost { .. } => "device-lost",
            Self::DeviceChanged { .. } => "device-changed",
            Self::Limited { .. } => "limited",
            Self::Error { .. } => "error",
            Self::Forked { .. } => "forked",
            Self::ForkEnded { .. } => "fork-ended",
            Self::Ended { .. } => "ended",
            Self::Lost { .. } => "lost",
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    lost: u64,
}

#[derive(Debug)]
struct Inbox {
    queue: Mutex<Queue>,
    /// Readable when there are events.
    ready: Wake,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The events of a machine from now on. What is not fetched in time is counted, and does not hold up the machine.
#[derive(Debug)]
pub struct Subscription(Arc<Inbox>);

impl Subscription {
    /// The next event, if there is one.
    #[must_use]
    pub fn try_next(&self) -> Option<Event> {
        let mut queue = self.0.lock();
        if queue.lost > 0 {
            let count = std::mem::take(&mut queue.lost);
            let last = queue.events.front();
            // Those that were lost would have come before the oldest that is left.
            return Some(Event {
                what: Happening::Lost { count },
                monotonic_us: last.map_or(0, |event| event.monotonic_us),
                time_ms: last.map_or(0, |event| event.time_ms),
            });
        }
        let event = queue.events.pop_front();
        if queue.events.is_empty() {
            self.0.ready.clear();
        }
        event
    }
}

impl Subscription {
    /// The next event, or `None` when none has come after `timeout`.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> Option<Event> {
        let start = Instant::now();
        loop {
            if let Some(event) = self.try_next() {
                return Some(event);
            }
            let left = timeout
                .checked_sub(start.elapsed())
                .filter(|left| !left.is_zero())?;
            let left = Timespec::try_from(left).ok();
            // Interrupted or not: whether there is an event is what counts.
            let _ = poll(&mut [PollFd::new(self, PollFlags::IN)], left.as_ref());
        }
    }
}

impl AsFd for Subscription {
    /// Becomes readable when there are events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.ready.as_fd()
    }
}

/// Where a machine's events come from.
#[derive(Debug)]
pub(crate) struct Publisher {
    inboxes: Mutex<Vec<Weak<Inbox>>>,
    start: Instant,
}

impl Default for Publisher {
    fn default() -> Self {
        Self {
            inboxes: Mutex::default(),
            start: Instant::now(),
        }
    }
}

impl Publisher {
    pub(crate) fn subscribe(&self) -> Result<Subscription, Error> {
        let inbox = Arc::new(Inbox {
            queue: Mutex::default(),
            ready: Wake::new()?,
        });
        let mut inboxes = self.lock();
        inboxes.retain(|inbox| inbox.strong_count() > 0);
        inboxes.push(Arc::downgrade(&inbox));
        Ok(Subscription(inbox))
    }

    pub(crate) fn publish(&self, what: Happening) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let event = Event {
            what,
            monotonic_us: micros(self.start.elapsed()),
            time_ms: millis(now.unwrap_or_default()),
        };
        for inbox in self.lock().iter().filter_map(Weak::upgrade) {
            let mut queue = inbox.lock();
            if queue.events.len() >= KEPT {
                queue.events.pop_front();
                queue.lost += 1;
            }
            queue.events.push_back(event.clone());
            inbox.ready.set();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Inbox>>> {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A time in whole milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn restart(restarts: u64) -> Happening {
        Happening::Restart { restarts }
    }

    #[test]
    fn a_subscriber_that_does_not_fetch_loses_the_oldest_and_is_told() {
        let publisher = Publisher::default();
        let (slow, none) = (
            publisher.subscribe().unwrap(),
            publisher.subscribe().unwrap(),
        );
        drop(none);
        for number in 0..300 {
            publisher.publish(restart(number));
        }
        assert_eq!(slow.try_next().unwrap().what, Happening::Lost { count: 44 });
        for number in 44..300 {
            assert_eq!(slow.try_next().unwrap().what, restart(number));
        }
        assert_eq!(slow.try_next(), None);
        publisher.publish(restart(1));
        assert_eq!(slow.try_next().unwrap().what, restart(1));
    }

    #[test]
    fn every_kind_of_event_is_on_the_list() {
        // serde names those there are, in a message.
        let error = serde_json::from_str::<Happening>(r#"{"event":""}"#).unwrap_err();
        let text = error.to_string();
        let known: Vec<_> = text.split('`').skip(3).step_by(2).collect();
        assert_eq!(known, Happening::NAMES);
    }

    #[test]
    fn every_event_is_listed_by_the_name_that_it_is_written_with() {
        let text = || String::from("x");
        let all = [
            Happening::State {
                state: State::Paused,
            },
            Happening::ShutdownAsked { timeout_ms: 1 },
            restart(1),
            Happening::GuestCrashed {
                vcpu: 1,
                cause: text(),
            },
            Happening::DriverReady {
                device: text(),
                times: 1,
            },
            Happening::NeedsReset {
                device: text(),
                cause: text(),
                times: 1,
            },
            Happening::DeviceLost {
                device: text(),
                cause: text(),
            },
            Happening::DeviceChanged {
                device: text(),
                change: text(),
            },
            Happening::Limited {
                device: text(),
                times: 1,
            },
            Happening::Error {
                device: None,
                cause: text(),
                times: 1,
            },
            Happening::Forked { pid: 1 },
            Happening::ForkEnded {
                pid: 1,
                status: text(),
            },
            Happening::Ended {
                reason: text(),
                failed: false,
            },
            Happening::Lost { count: 1 },
        ];
        assert_eq!(all.each_ref().map(Happening::name), Happening::NAMES);
        for what in all {
            let value = serde_json::to_value(&what).unwrap();
            assert_eq!(value["event"], what.name());
            assert_eq!(serde_json::from_value::<Happening>(value).unwrap(), what);
        }
    }

    #[test]
    fn an_event_can_be_waited_for() {
        let publisher = Publisher::default();
        let subscription = publisher.subscribe().unwrap();
        assert_eq!(subscription.wait(Duration::ZERO), None);
        assert_eq!(subscription.wait(Duration::from_millis(1)), None);
        std::thread::scope(|scope| {
            scope.spawn(|| publisher.publish(restart(1)));
            let event = subscription.wait(Duration::MAX).unwrap();
            assert_eq!(event.what, restart(1));
        });
    }

    #[test]
    fn an_event_is_a_flat_object() {
        let publisher = Publisher::default();
        let subscription = publisher.subscribe().unwrap();
        publisher.publish(Happening::State {
            state: State::Paused,
        });
        let event = subscription.try_next().unwrap();
        let value = serde_json::to_value(&event).unwrap();
        assert_eq!(value["event"], "state");
        assert_eq!(value["state"], "paused");
        assert!(value["time_ms"].as_u64().unwrap() > 1_700_000_000_000);
    }
}
