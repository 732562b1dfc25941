//! Where vCPU threads wait while the machine is paused.
//!
//! A vCPU thread passes the gate after each KVM_RUN that a kick has ended, and so with no I/O pending: KVM
//! completes what the last exit was about before it heeds `immediate_exit`. Whoever closes the gate then kicks
//! all vCPUs and waits until each thread stands at the gate or has ended. A vCPU that runs the guest takes no
//! notice of the gate: it costs an exit nothing.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// Threads that have not ended.
    alive: usize,
    /// Those of them that stand at the gate.
    waiting: usize,
    /// Whoever stands there is to end.
    dismissed: bool,
}

/// The gate of a machine's vCPU threads.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

/// A thread that passes a gate; dropping it says that it has ended.
#[derive(Debug)]
pub(crate) struct Passer<'a>(&'a Gate);

impl Gate {
    /// Another thread will pass; it then calls [`Self::passer`].
    pub(crate) fn expect_one(&self) {
        self.lock().alive += 1;
    }

    /// The thread that was expected; or one that could not start, and ends here.
    pub(crate) fn passer(&self) -> Passer<'_> {
        Passer(self)
    }

    /// From now on nobody passes.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }

    /// Waits until every thread stands at the gate or has ended.
    pub(crate) fn wait_for_all(&self) {
        let mut state = self.lock();
        while state.closed && state.waiting < state.alive {
            state = self.wait(state);
        }
    }

    /// Lets everybody pass.
    pub(crate) fn open(&self) {
        self.lock().closed = false;
        self.changed.notify_all();
    }

    /// Has every thread that stands at the gate end, and those that come, until [`Self::admit`].
    #[cfg(feature = "snapshot")]
    pub(crate) fn dismiss(&self) {
        self.lock().dismissed = true;
        self.changed.notify_all();
    }

    /// The reverse.
    #[cfg(feature = "snapshot")]
    pub(crate) fn admit(&self) {
        self.lock().dismissed = false;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let state = self.changed.wait(state);
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Passer<'_> {
    /// Waits while the gate is closed; calls `arrived` once before it waits. Says whether the thread goes on; else it is
    /// to end.
    pub(crate) fn pass(&self, arrived: impl FnOnce()) -> bool {
        let mut state = self.0.lock();
        if !state.closed {
            return true;
        }
        drop(state);
        arrived();
        state = self.0.lock();
        state.waiting += 1;
        self.0.changed.notify_all();
        while state.closed && !state.dismissed {
            state = self.0.wait(state);
        }
        state.waiting -= 1;
        !state.dismissed
    }
}

impl Drop for Passer<'_> {
    fn drop(&mut self) {
        self.0.lock().alive -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn nobody_passes_a_closed_gate_and_everybody_an_open_one() {
        let (gate, ended, passed) = (Gate::default(), AtomicBool::new(false), AtomicUsize::new(0));
        let pass = |passer: &Passer<'_>| {
            passer.pass(|| ());
            passed.fetch_add(1, Ordering::SeqCst);
        };
        thread::scope(|scope| {
            for _ in 0..3 {
                gate.expect_one();
                scope.spawn(|| {
                    let passer = gate.passer();
                    while !ended.load(Ordering::SeqCst) {
                        pass(&passer);
                    }
                });
            }
            for _ in 0..100 {
                gate.close();
                gate.wait_for_all();
                let before = passed.load(Ordering::SeqCst);
                thread::yield_now();
                assert_eq!(passed.load(Ordering::SeqCst), before);
                gate.open();
            }
            ended.store(true, Ordering::SeqCst);
        });
        // Those that have ended are not waited for.
        gate.close();
        gate.wait_for_all();
    }
}
