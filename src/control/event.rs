//! What happens to a machine, for whoever wants to hear of it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::Error;
use crate::control::command::State;
use crate::control::metrics;
use crate::control::wake::Wake;
use serde::{Deserialize, Serialize};

/// Events kept for a subscriber who does not fetch them.
const KEPT: usize = 256;

/// Something that happened, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The names of all kinds.
    #[cfg_attr(not(feature = "control"), allow(dead_code))]
    pub(crate) const NAMES: [&str; 5] = ["state", "shutdown-asked", "restart", "ended", "lost"];

    /// The kind of event, as it is written.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::State { .. } => "state",
            Self::ShutdownAsked { .. } => "shutdown-asked",
            Self::Restart { .. } => "restart",
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
            monotonic_us: metrics::micros(self.start.elapsed()),
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
