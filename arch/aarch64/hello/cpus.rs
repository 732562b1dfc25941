//! Starts the other vCPUs and counts those that have run.
//!
//! Each has a place of its own to answer at, so nothing needs a lock.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::entry::secondary_entry;
use crate::machine::{AFFINITY, affinity, ticks, ticks_per_second};
use crate::psci;

/// The most other vCPUs that are started.
const MAX: usize = 512;
/// How long the next one may take.
const SECONDS: u64 = 10;

struct Place {
    /// Whom the place is for.
    affinity: AtomicU64,
    /// MPIDR_EL1 of who came; never 0 (bit 31 is 1).
    answer: AtomicU64,
}

static PLACES: [Place; MAX] = [const {
    Place {
        affinity: AtomicU64::new(0),
        answer: AtomicU64::new(0),
    }
}; MAX];

impl Place {
    /// Whether the right one came.
    fn is_taken(&self) -> bool {
        let answer = self.answer.load(Ordering::Relaxed);
        answer != 0 && answer & AFFINITY == self.affinity.load(Ordering::Relaxed)
    }
}

/// Starts the vCPUs with these affinities except this one, and says how many have run, this one
/// included.
pub fn start(affinities: impl Iterator<Item = u64>) -> usize {
    let own = affinity();
    let mut expected = 0;
    for (id, place) in affinities.filter(|&id| id != own).zip(&PLACES) {
        place.affinity.store(id, Ordering::Relaxed);
        // SAFETY: the code writes the answer and no other memory.
        let comes = unsafe { psci::cpu_on(id, secondary_entry(), place.answer.as_ptr() as u64) };
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
