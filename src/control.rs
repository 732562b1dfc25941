//! How a VM ends: the first reason given wins, whoever gives it.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use std::time::{Duration, Instant};

use devices::PowerButton;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::Error;

/// Why a VM ended without a failure of the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitReason {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest crashed.
    Crashed(Crash),
    /// [`VmHandle::request_stop`] was called.
    Stopped,
}

/// How a guest crashed. `Display` is a part of a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crash {
    /// The vCPU that crashed, or told of it.
    pub vcpu: u32,
    /// What happened.
    pub cause: CrashCause,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}: {}", self.vcpu, self.cause)
    }
}

/// What makes the end of a guest a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CrashCause {
    /// An exception that it could not handle, nor the exceptions that followed (KVM_EXIT_SHUTDOWN).
    TripleFault,
    /// Its kernel panicked and told of it through the pvpanic device.
    Panic,
    /// It told the hypervisor that it crashed (KVM_SYSTEM_EVENT_CRASH).
    SystemEvent,
}

impl fmt::Display for CrashCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TripleFault => "triple fault, an exception that it has no working handler for",
            Self::Panic => "its kernel panicked, as it told through pvpanic",
            Self::SystemEvent => "it reported a crash to the hypervisor (KVM_SYSTEM_EVENT_CRASH)",
        })
    }
}

pub(crate) type Outcome = Result<ExitReason, Error>;

#[derive(Default)]
struct State {
    outcome: Option<Outcome>,
    /// Somebody outside wants the VM to end, whatever the guest does.
    stop: bool,
    /// What asks the guest to power itself off, on machines that have such a thing.
    button: Option<Arc<dyn PowerButton>>,
    /// The button was pressed, and the guest has so much time.
    shutdown: Option<Duration>,
    /// When it was pressed first.
    asked: Option<Instant>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("outcome", &self.outcome)
            .field("stop", &self.stop)
            .finish_non_exhaustive()
    }
}

/// What a guest does about its power button shows within this time, if it has a driver.
const NOTICE: Duration = Duration::from_secs(3);
/// Requests that come together are one: `timeout` signals the process and its group, a service manager the
/// process and its supervisor.
const TOGETHER: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    ended: AtomicBool,
    event: EventFd,
    /// Runs out when a guest that was asked to power itself off has had its time.
    deadline: OwnedFd,
}

/// Stops a running VM from any thread; clones refer to the same VM.
#[derive(Debug, Clone)]
pub struct VmHandle(Arc<Shared>);

impl VmHandle {
    pub(crate) fn new() -> Result<Self, Error> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(Error::host("cannot create an eventfd"))?;
        Ok(Self(Arc::new(Shared {
            state: Mutex::default(),
            ended: AtomicBool::new(false),
            event,
            deadline: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
            )
            .map_err(|errno| Error::host("cannot create a timer")(errno.into()))?,
        })))
    }

    /// Asks the VM to end now, with [`ExitReason::Stopped`] unless it has ended already.
    pub fn request_stop(&self) {
        self.state().stop = true;
        self.end(Ok(ExitReason::Stopped));
    }

    /// Presses the guest's power button: a guest with a driver for it powers itself off in order. Ends
    /// the VM, as [`Self::request_stop`] does, when there is no button, when it is the second request
    /// (within a second of the first it is the same one), when the guest takes no notice within 3 s, and when it has not ended after `patience`. A guest
    /// that resets instead ends the VM too, also one that would start again.
    pub fn request_shutdown(&self, patience: Duration) {
        let mut state = self.state();
        let first = state.shutdown.is_none();
        if state.asked.is_some_and(|asked| asked.elapsed() < TOGETHER) {
            return;
        }
        match &state.button {
            Some(button) if first && !patience.is_zero() => {
                button.press();
                self.arm(patience.min(NOTICE));
                state.asked = Some(Instant::now());
                state.shutdown = Some(patience);
                log::warn!(
                    "the guest is asked to power off; another request, or {} s, end the VM",
                    patience.as_secs()
                );
            }
            _ => {
                drop(state);
                self.request_stop();
            }
        }
    }

    /// The guest's time is over, or it was the time to look whether it has taken notice.
    pub(crate) fn deadline_passed(&self) {
        let mut state = self.state();
        let noticed = state
            .button
            .as_ref()
            .is_some_and(|button| button.was_noticed());
        match state.shutdown {
            Some(patience) if noticed && patience > NOTICE => {
                state.shutdown = Some(Duration::ZERO);
                self.arm(patience.saturating_sub(NOTICE));
            }
            _ => {
                log::warn!(
                    "{}; the VM ends",
                    if noticed {
                        "the guest has not powered off in time"
                    } else {
                        "the guest takes no notice of its power button"
                    }
                );
                drop(state);
                self.request_stop();
            }
        }
    }

    fn arm(&self, after: Duration) {
        let once = Itimerspec {
            it_interval: Timespec::default(),
            // At least something: zero would switch it off.
            it_value: after
                .max(Duration::from_nanos(1))
                .try_into()
                .unwrap_or_default(),
        };
        // It cannot fail for a timer and times that are none of a calendar.
        let _ = timerfd_settime(&self.0.deadline, TimerfdTimerFlags::empty(), &once);
    }

    pub(crate) fn deadline(&self) -> &OwnedFd {
        &self.0.deadline
    }

    pub(crate) fn set_button(&self, button: Option<Arc<dyn PowerButton>>) {
        let mut state = self.state();
        // It may have been asked while the machine was built.
        if let (Some(_), Some(button)) = (state.shutdown, &button) {
            button.press();
        }
        state.button = button;
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
            // Nor when it was asked to power off: what starts again has not heard of that.
            Some(Ok(ExitReason::Reset)) if state.stop || state.shutdown.is_some() => {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Button;

    impl PowerButton for Button {
        fn press(&self) {}

        fn was_noticed(&self) -> bool {
            true
        }
    }

    #[test]
    fn r71_two_requests_at_once_are_one() {
        let handle = VmHandle::new().unwrap();
        handle.set_button(Some(Arc::new(Button)));
        for _ in 0..3 {
            handle.request_shutdown(Duration::from_secs(60));
        }
        assert!(!handle.has_ended());
        let before = Instant::now().checked_sub(TOGETHER);
        handle.state().asked = before;
        handle.request_shutdown(Duration::from_secs(60));
        assert!(handle.has_ended());
    }

    #[test]
    fn a_guest_that_was_asked_to_power_off_does_not_start_again() {
        let handle = VmHandle::new().unwrap();
        handle.set_button(Some(Arc::new(Button)));
        handle.end(Ok(ExitReason::Reset));
        assert!(handle.restart());
        handle.request_shutdown(Duration::from_secs(60));
        assert!(!handle.has_ended());
        handle.end(Ok(ExitReason::Reset));
        assert!(!handle.restart());
        assert!(matches!(handle.take(), Some(Ok(ExitReason::Stopped))));
    }
}
