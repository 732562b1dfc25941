//! How a VM ends: the first reason given wins, whoever gives it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Error;

/// Why a VM ended without a failure of the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitReason {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest crashed: a triple fault, or a crash event it sent.
    Crashed,
    /// [`VmHandle::request_stop`] was called.
    Stopped,
}

pub(crate) type Outcome = Result<ExitReason, Error>;

#[derive(Debug, Default)]
struct State {
    outcome: Option<Outcome>,
    /// Somebody outside wants the VM to end, whatever the guest does.
    stop: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    ended: AtomicBool,
    event: EventFd,
}

/// Stops a running VM from any thread; clones refer to the same VM.
#[derive(Debug, Clone)]
pub struct VmHandle(Arc<Shared>);

impl VmHandle {
    pub(crate) fn new() -> Result<Self, Error> {
        let event = EventFd::new(EFD_NONBLOCK).map_err(Error::host("cannot create an eventfd"))?;
        Ok(Self(Arc::new(Shared {
            state: Mutex::default(),
            ended: AtomicBool::new(false),
            event,
        })))
    }

    /// Asks the VM to end now, with [`ExitReason::Stopped`] unless it has ended already.
    pub fn request_stop(&self) {
        self.state().stop = true;
        self.end(Ok(ExitReason::Stopped));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn end(&self, outcome: Outcome) {
        let mut state = self.state();
        if !self.0.ended.swap(true, Ordering::AcqRel) {
            state.outcome = Some(outcome);
            // The counter cannot overflow: this is its only write.
            let _ = self.0.event.write(1);
        }
    }

    /// After the guest's reset: the VM goes on. Not when somebody wants it to end.
    pub(crate) fn restart(&self) -> bool {
        let mut state = self.state();
        match state.outcome {
            Some(Ok(ExitReason::Reset)) if state.stop => {
                state.outcome = Some(Ok(ExitReason::Stopped));
                false
            }
            Some(Ok(ExitReason::Reset)) => {
                state.outcome = None;
                // Reading only resets the counter.
                let _ = self.0.event.read();
                self.0.ended.store(false, Ordering::Release);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::Acquire)
    }

    pub(crate) fn event(&self) -> &EventFd {
        &self.0.event
    }

    pub(crate) fn take(&self) -> Option<Outcome> {
        self.state().outcome.take()
    }
}
