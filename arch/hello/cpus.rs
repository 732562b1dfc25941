//! Starts the other vCPUs and counts those that have run.
//!
//! Each has a place of its own to answer at, so nothing needs a lock.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::entry::secondary_entry;
use crate::firmware;
use crate::machine::{id, id_in, ticks, ticks_per_second};

/// The most other vCPUs that are started.
const MAX: usize = 512;
/// How long the next one may take.
const SECONDS: u64 = 10;

struct Place {
    /// Whom the place is for.
    id: AtomicU64,
    /// Who came, as the code of the other vCPUs says it: never 0.
    answer: AtomicU64,
}

static PLACES: [Place; MAX] = [const {
    Place {
        id: AtomicU64::new(0),
        answer: AtomicU64::new(0),
    }
}; MAX];

impl Place {
    /// Whether the right one came.
    fn is_taken(&self) -> bool {
        let answer = self.answer.load(Ordering::Relaxed);
        answer != 0 && id_in(answer) == self.id.load(Ordering::Relaxed)
    }
}

/// Starts the vCPUs with these numbers except this one, and says how many have run, this one
/// included.
pub fn start(ids: impl Iterator<Item = u64>) -> usize {
    let own = id();
    let mut expected = 0;
    for (id, place) in ids.filter(|&id| id != own).zip(&PLACES) {
        place.id.store(id, Ordering::Relaxed);
        let answer = place.answer.as_ptr() as u64;
        // SAFETY: the code writes the answer and no other memory.
        let comes = unsafe { firmware::start_vcpu(id, secondary_entry(), answer) };
        expected += usize::from(comes);
    }
    1 + wait(expected)
}

/// Waits until so many have come, or nobody comes any more; says how many have.
fn wait(expected: usize) -> usize {
    let patience = SECONDS * ticks_per_second();
    let (mut came, mut since) = (0, ticks());
    loop {
        let now = PLACES.iter().filter(|place| place.is_taken()).count();
        if now > came {
            (came, since) = (now, ticks());
        }
        if came >= expected || ticks().wrapping_sub(since) >= patience {
            return came;
        }
        core::hint::spin_loop();
    }
}
