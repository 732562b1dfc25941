//! The handle of a VM: its end, of which the first reason given wins, whoever gives it; and the commands of
//! others on their way to the thread that runs the machine.

use std::collections::VecDeque;
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

use crate::Error;
use crate::confinement::Confined;
#[cfg(feature = "control")]
use crate::control::answer::Watched;
use crate::control::answer::{Answer, Asked, Pending, Request};
use crate::control::command::{Command, CommandError, Reply, State, Status};
use crate::control::ending::ExitReason;
use crate::control::event::{Happening, Publisher, Subscription, millis};
use crate::control::metrics::{Metrics, Resident};
use crate::memory::proc_files::ProcFiles;
use crate::wake::Wake;

pub(crate) type Outcome = Result<ExitReason, Error>;

#[derive(Default)]
struct Life {
    /// What the machine does, as commands see it.
    stage: Stage,
    requests: VecDeque<Request>,
    outcome: Option<Outcome>,
    /// Somebody outside wants the VM to end, whatever the guest does.
    stop: bool,
    /// What asks the guest to power itself off, on machines that have such a thing.
    button: Option<Arc<dyn PowerButton>>,
    /// The button was pressed, and the guest has so much time.
    shutdown: Option<Duration>,
    /// When it was pressed first.
    asked: Option<Instant>,
    /// A command asked for the reset: the machine starts again whatever its configuration says.
    reset: bool,
    restarts: u64,
    /// What the machine had done when its guest ended last.
    metrics: Metrics,
}

/// What the machine does, and with that who answers commands.
#[derive(Debug, Default)]
enum Stage {
    /// Nobody runs it: the handle answers itself.
    #[default]
    Created,
    /// Nobody runs it, and it begins paused.
    CreatedPaused,
    /// A thread runs it, and answers.
    Running,
    /// The same, and the guest stands still.
    Paused,
    Ended,
}

impl Stage {
    fn state(&self) -> State {
        match self {
            Self::Created | Self::CreatedPaused => State::Created,
            Self::Running => State::Running,
            Self::Paused => State::Paused,
            Self::Ended => State::Ended,
        }
    }
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Life")
            .field("stage", &self.stage)
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
    life: Mutex<Life>,
    ended: AtomicBool,
    event: Wake,
    /// Written when there is a request.
    requested: Wake,
    publisher: Publisher,
    resident: Resident,
    proc_files: ProcFiles,
    confined: Confined,
    /// Runs out when a guest that was asked to power itself off has had its time.
    deadline: OwnedFd,
}

/// Stops a running VM from any thread; clones refer to the same VM.
#[derive(Debug, Clone)]
pub struct VmHandle(Arc<Shared>);

impl VmHandle {
    #[cfg(test)]
    pub(crate) fn new() -> Result<Self, Error> {
        Self::confined_by(Confined::default(), Resident::open(), ProcFiles::open())
    }

    pub(crate) fn confined_by(
        confined: Confined,
        resident: Resident,
        proc_files: ProcFiles,
    ) -> Result<Self, Error> {
        Ok(Self(Arc::new(Shared {
            life: Mutex::default(),
            ended: AtomicBool::new(false),
            event: Wake::new()?,
            requested: Wake::new()?,
            publisher: Publisher::default(),
            resident,
            proc_files,
            confined,
            deadline: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
            )
            .map_err(|errno| Error::host("cannot create a timer")(errno.into()))?,
        })))
    }

    /// What the kernel tells of this process' memory.
    #[cfg_attr(not(feature = "snapshot"), allow(dead_code))]
    pub(crate) fn proc_files(&self) -> &ProcFiles {
        &self.0.proc_files
    }

    pub(crate) fn confined(&self) -> &Confined {
        &self.0.confined
    }

    /// Asks the VM to end now, with [`ExitReason::Stopped`] unless it has ended already.
    pub fn request_stop(&self) {
        self.life().stop = true;
        self.end(Ok(ExitReason::Stopped));
    }

    /// Has the machine do something, from any thread but the one in [`Machine::run`](crate::Machine::run), and
    /// waits for the answer. Commands are carried out one after the other, in the order in which they come; [`Command::Stop`]
    /// at once.
    ///
    /// # Errors
    /// When the command makes no sense in the machine's state, or the machine ends before it comes to it.
    pub fn command(&self, command: Command) -> Result<Reply, CommandError> {
        self.command_with(command, Vec::new())
    }

    /// As [`Self::command`], with the open descriptors that the command takes ([`Command::descriptors`]).
    ///
    /// # Errors
    /// Also when it takes another number of them.
    pub fn command_with(
        &self,
        command: Command,
        files: Vec<OwnedFd>,
    ) -> Result<Reply, CommandError> {
        self.ask(command, files, None)?.wait()
    }

    /// As [`Self::command_with`], without waiting: a program that is to fork has no thread left that waits.
    ///
    /// # Errors
    /// When the command makes no sense in the machine's state, or takes another number of descriptors.
    pub fn start_command(
        &self,
        command: Command,
        files: Vec<OwnedFd>,
    ) -> Result<Pending, CommandError> {
        self.ask(command, files, None).map(Pending)
    }

    /// As [`Self::start_command`], for a program that polls for the answer.
    ///
    /// # Errors
    /// As there, and when the host refuses a descriptor to wait at.
    #[cfg(feature = "control")]
    pub fn watch_command(
        &self,
        command: Command,
        files: Vec<OwnedFd>,
    ) -> Result<Watched, CommandError> {
        let name = command.name();
        let wake = Wake::new().map_err(|error| CommandError::Host {
            command: name,
            source: std::io::Error::other(error.chain()),
        })?;
        let wake = Arc::new(wake);
        let asked = self.ask(command, files, Some(Arc::clone(&wake)))?;
        if matches!(asked, Asked::Now(_)) {
            wake.set();
        }
        let asked = Mutex::new(asked);
        Ok(Watched { asked, wake })
    }

    /// The same, without waiting: `wake` is set when the answer comes.
    pub(crate) fn ask(
        &self,
        command: Command,
        files: Vec<OwnedFd>,
        wake: Option<Arc<Wake>>,
    ) -> Result<Asked, CommandError> {
        let name = command.name();
        if files.len() != command.descriptors() {
            return Err(CommandError::Descriptors {
                command: name,
                takes: command.descriptors(),
                given: files.len(),
            });
        }
        let mut life = self.life();
        let state = life.stage.state();
        if !command.is_legal(state) {
            return Err(CommandError::State {
                command: name,
                state,
            });
        }
        // Not in its turn: what comes before it may wait for a guest that does not answer.
        if matches!(command, Command::Stop {}) {
            drop(life);
            self.request_stop();
            let state = State::Ended;
            return Ok(Asked::Now(Reply::Done { state }));
        }
        match life.stage {
            Stage::Running | Stage::Paused => {
                let (answer, answered) = Answer::new(name, wake);
                life.requests.push_back(Request {
                    command,
                    files,
                    answer,
                });
                self.0.requested.set();
                Ok(Asked::Later(answered))
            }
            Stage::Created | Stage::CreatedPaused | Stage::Ended => {
                match command {
                    Command::Pause {} => life.stage = Stage::CreatedPaused,
                    Command::Resume {} => life.stage = Stage::Created,
                    Command::Metrics {} => {
                        return Ok(Asked::Now(Reply::Metrics(life.metrics.clone())));
                    }
                    Command::Status {} => {
                        let status = Status::without_machine(state, life.restarts);
                        return Ok(Asked::Now(Reply::Status(status)));
                    }
                    _ => {}
                }
                Ok(Asked::Now(Reply::Done { state }))
            }
        }
    }

    /// A thread runs the machine from now on, and answers commands. Says whether it begins paused.
    pub(crate) fn begin(&self) -> bool {
        let mut life = self.life();
        let paused = matches!(life.stage, Stage::CreatedPaused | Stage::Paused);
        life.stage = if paused {
            Stage::Paused
        } else {
            Stage::Running
        };
        let state = life.stage.state();
        self.publish(Happening::State { state });
        // What came before a restart waits still.
        if !life.requests.is_empty() {
            self.0.requested.set();
        }
        paused
    }

    /// The next command that somebody waits for, and the state that it finds.
    pub(crate) fn next_request(&self) -> Option<(Request, State)> {
        let mut life = self.life();
        let state = life.stage.state();
        life.requests.pop_front().map(|request| (request, state))
    }

    /// Becomes readable when there are commands.
    pub(crate) fn requested(&self) -> &Wake {
        &self.0.requested
    }

    /// The machine was paused, or goes on.
    pub(crate) fn set_paused(&self, paused: bool) {
        let mut life = self.life();
        let before = life.stage.state();
        life.stage = if paused {
            Stage::Paused
        } else {
            Stage::Running
        };
        let state = life.stage.state();
        if state != before {
            self.publish(Happening::State { state });
        }
    }

    pub(crate) fn publish(&self, what: Happening) {
        self.0.publisher.publish(what);
    }

    /// What happens to the machine from now on.
    ///
    /// # Errors
    /// When the host refuses an eventfd.
    pub fn subscribe(&self) -> Result<Subscription, Error> {
        self.0.publisher.subscribe()
    }

    /// Memory of this process that the host has given pages to, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.0.resident.bytes()
    }

    /// The machine ends, and this is what it has done.
    pub(crate) fn keep_metrics(&self, metrics: Metrics) {
        self.life().metrics = metrics;
    }

    /// How often the machine has started again.
    pub(crate) fn restarts(&self) -> u64 {
        self.life().restarts
    }

    /// Whether the guest was asked to power itself off.
    pub(crate) fn is_shutdown_asked(&self) -> bool {
        self.life().shutdown.is_some()
    }

    /// Ends the machine's run as a reset by the guest does, to start again.
    pub(crate) fn request_reset(&self) {
        self.life().reset = true;
        self.end(Ok(ExitReason::Reset));
    }

    /// Nobody runs the machine any more. Whoever waits for an answer gets one.
    pub(crate) fn finish(&self, outcome: Option<&Outcome>) {
        let mut life = self.life();
        life.stage = Stage::Ended;
        let reason = match outcome {
            Some(Ok(reason)) => reason.to_string(),
            Some(Err(error)) => error.chain(),
            None => "its thread panicked, which is a fault of the VMM".to_owned(),
        };
        self.publish(Happening::Ended {
            reason,
            failed: !matches!(outcome, Some(Ok(reason)) if !matches!(reason, ExitReason::Crashed(_))),
        });
        for request in std::mem::take(&mut life.requests) {
            let name = request.command.name();
            request.answer.send(Err(CommandError::Ended(name)));
        }
    }

    /// Presses the guest's power button: a guest with a driver for it powers itself off in order. Ends
    /// the VM, as [`Self::request_stop`] does, when there is no button, when it is the second request
    /// (within a second of the first it is the same one), when the guest takes no notice within 3 s, and when it has not ended after `patience`. A guest
    /// that resets instead ends the VM too, also one that would start again.
    pub fn request_shutdown(&self, patience: Duration) {
        let mut life = self.life();
        let first = life.shutdown.is_none();
        if life.asked.is_some_and(|asked| asked.elapsed() < TOGETHER) {
            return;
        }
        match &life.button {
            Some(button) if first && !patience.is_zero() => {
                button.press();
                self.arm(patience.min(NOTICE));
                life.asked = Some(Instant::now());
                life.shutdown = Some(patience);
                let timeout_ms = millis(patience);
                let asked = Happening::ShutdownAsked { timeout_ms };
                self.publish(asked);
                log::warn!(
                    "the guest is asked to power off; another request, no notice of it within 3 s, \
                     or {} s end the VM",
                    patience.as_secs()
                );
            }
            _ => {
                drop(life);
                self.request_stop();
            }
        }
    }

    /// The guest's time is over, or it was the time to look whether it has taken notice.
    pub(crate) fn deadline_passed(&self) {
        let mut life = self.life();
        let noticed = life
            .button
            .as_ref()
            .is_some_and(|button| button.was_noticed());
        match life.shutdown {
            Some(patience) if noticed && patience > NOTICE => {
                life.shutdown = Some(Duration::ZERO);
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
                drop(life);
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
        // It can fail only for a wrong timer or a wrong time.
        let _ = timerfd_settime(&self.0.deadline, TimerfdTimerFlags::empty(), &once);
    }

    pub(crate) fn deadline(&self) -> &OwnedFd {
        &self.0.deadline
    }

    pub(crate) fn set_button(&self, button: Option<Arc<dyn PowerButton>>) {
        let mut life = self.life();
        // It may have been asked while the machine was built.
        if let (Some(_), Some(button)) = (life.shutdown, &button) {
            button.press();
        }
        life.button = button;
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.0.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn end(&self, outcome: Outcome) {
        let mut life = self.life();
        if !self.0.ended.swap(true, Ordering::AcqRel) {
            life.outcome = Some(outcome);
            self.0.event.set();
        }
    }

    /// After a reset: whether the VM goes on. Not when somebody wants it to end; else when a command asked for the
    /// reset, or when `allowed`.
    pub(crate) fn restart(&self, allowed: bool) -> bool {
        let mut life = self.life();
        match life.outcome {
            Some(Ok(ExitReason::Reset)) if !allowed && !life.reset => false,
            // Nor when it was asked to power off: what starts again has not heard of that.
            Some(Ok(ExitReason::Reset)) if life.stop || life.shutdown.is_some() => {
                life.outcome = Some(Ok(ExitReason::Stopped));
                false
            }
            Some(Ok(ExitReason::Reset)) => {
                life.outcome = None;
                life.reset = false;
                life.restarts += 1;
                let restarts = life.restarts;
                self.publish(Happening::Restart { restarts });
                self.0.event.clear();
                self.0.ended.store(false, Ordering::Release);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::Acquire)
    }

    /// Whether it has ended because somebody has asked for that, and not by its guest.
    pub(crate) fn was_stopped(&self) -> bool {
        matches!(self.life().outcome, Some(Ok(ExitReason::Stopped)))
    }

    pub(crate) fn event(&self) -> &Wake {
        &self.0.event
    }

    pub(crate) fn take(&self) -> Option<Outcome> {
        self.life().outcome.take()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Debug)]
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
        handle.life().asked = before;
        handle.request_shutdown(Duration::from_secs(60));
        assert!(handle.has_ended());
    }

    #[test]
    fn a_guest_that_was_asked_to_power_off_does_not_start_again() {
        let handle = VmHandle::new().unwrap();
        handle.set_button(Some(Arc::new(Button)));
        handle.end(Ok(ExitReason::Reset));
        assert!(handle.restart(true));
        handle.request_shutdown(Duration::from_secs(60));
        assert!(!handle.has_ended());
        handle.end(Ok(ExitReason::Reset));
        assert!(!handle.restart(true));
        assert!(matches!(handle.take(), Some(Ok(ExitReason::Stopped))));
    }
}
