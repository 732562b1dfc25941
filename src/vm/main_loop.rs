//! The VM's main loop.
//!
//! It waits for whatever concerns a console ([`Line`]), and for the VM's end, whoever wants it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rustix::event::Timespec;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::Error;
use crate::console::line::{Line, read_now};
use crate::console::{Console, Port};
use crate::control::handle::VmHandle;
use crate::control::requests::Requests;
use crate::timeline::{OutputWatch, Timeline};

/// How long the loop lets a guest print before it looks again, in nanoseconds: a guest that prints byte by
/// byte wakes it so often and not for each byte.
const PACE: i64 = 1_000_000;
/// How often it looks whether a terminal that belongs to another job has come back, in nanoseconds: a shell
/// tells only a job that was stopped.
const AWAY: i64 = 500_000_000;

/// What the main loop gives back at the VM's end.
pub(crate) struct Ended<T> {
    pub(crate) lines: Vec<(Console, Port)>,
    pub(crate) stop: Requests,
    /// What became of what ran.
    pub(crate) rest: T,
}

/// What runs beside the main loop, and belongs to its thread.
pub(crate) trait Engine {
    /// What is left of it.
    type Rest;

    /// Carries out the commands that have come.
    fn serve(&mut self);

    /// Lets a guest that stands still go on.
    fn resume(&mut self);

    /// Ends the guest. Its devices print what they still have of it.
    fn end_guest(&mut self);

    /// Ends the devices.
    fn end(self) -> Self::Rest;

    /// Whether the main loop is to let go of it before its end.
    fn leaves(&self) -> bool {
        false
    }

    /// What it waits for besides commands. All of it stays open until [`Self::news`] gives it.
    fn watched(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// Something of that is readable. Gives what is not to be watched any more.
    fn news(&mut self) -> Vec<OwnedFd> {
        Vec::new()
    }
}

/// Why the main loop is over.
pub(crate) enum Left<E: Engine> {
    /// The VM has ended.
    Ended(Ended<E::Rest>),
    /// The engine leaves it, and the loop may go on afterwards.
    Left(MainLoop<E>),
}

/// Runs the VM's main loop until the engine leaves it or the VM ends; then it ends the engine and writes out what the
/// guest printed.
pub(crate) fn main_loop<E: Engine>(main_loop: MainLoop<E>) -> Result<Left<E>, Error> {
    let failed = |error: event_manager::Error| {
        Error::host("the main loop failed")(match error {
            event_manager::Error::Epoll(errno) => errno.into(),
            other => io::Error::other(other.to_string()),
        })
    };
    let handle = main_loop.handle.clone();
    let mut events = EventManager::new().map_err(failed)?;
    let id = events.add_subscriber(main_loop);
    while !handle.has_ended() && !events.subscriber_mut(id).map_err(failed)?.engine.leaves() {
        match events.run() {
            Ok(_) => {}
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let mut main_loop = events.remove_subscriber(id).map_err(failed)?;
    if !handle.has_ended() {
        main_loop.rest();
        return Ok(Left::Left(main_loop));
    }
    let MainLoop {
        mut lines,
        stop,
        mut engine,
        ..
    } = main_loop;
    engine.end_guest();
    lines.iter_mut().for_each(|line| line.drain(&stop));
    let rest = engine.end();
    lines.iter_mut().for_each(|line| line.drain(&stop));
    let lines = lines.into_iter().map(Line::end).collect();
    Ok(Left::Ended(Ended { lines, stop, rest }))
}

/// What an event of the main loop is about.
const END: u32 = u32::MAX;
const STOP: u32 = u32::MAX - 1;
const SHUTDOWN: u32 = u32::MAX - 2;
const DEADLINE: u32 = u32::MAX - 3;
const LOOK: u32 = u32::MAX - 4;
const REQUESTED: u32 = u32::MAX - 5;
const NEWS: u32 = u32::MAX - 6;
/// Or what it is about lies in these bits, and the line's number above.
const LINE_SHIFT: u32 = 3;

/// A VM's main loop, with all that it waits for.
pub(crate) struct MainLoop<E> {
    lines: Vec<Line>,
    stop: Requests,
    handle: VmHandle,
    pub(crate) engine: E,
    /// Runs out when it is time to look at the lines again that have no wake-up armed.
    pace: OwnedFd,
    /// How long it was set to.
    pacing: Option<i64>,
}

impl<E: Engine> MainLoop<E> {
    /// With a line for each console.
    pub(crate) fn with_consoles(
        consoles: Vec<(Console, Port)>,
        stop: Requests,
        handle: VmHandle,
        timeline: &Timeline,
        engine: E,
    ) -> Result<Self, Error> {
        let lines = (0..)
            .zip(consoles)
            .map(|(number, (console, port))| {
                let watch = OutputWatch::new(timeline.clone());
                Line::new(number << LINE_SHIFT, console, port, handle.clone(), watch)
            })
            .collect::<Result<_, _>>()?;
        Self::new(lines, stop, handle, engine)
    }

    /// Nobody watches anything any more, until it goes on.
    fn rest(&mut self) {
        self.pacing = None;
        self.lines.iter_mut().for_each(Line::rest);
    }

    fn new(lines: Vec<Line>, stop: Requests, handle: VmHandle, engine: E) -> Result<Self, Error> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let pace = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(|errno| Error::host("cannot create a timer")(errno.into()))?;
        Ok(Self {
            lines,
            stop,
            handle,
            engine,
            pace,
            pacing: None,
        })
    }

    /// Sets the timer for the lines that are to be looked at again, once for all of them.
    fn set_pace(&mut self) {
        let pace = if self.lines.iter().any(Line::is_unattended) {
            PACE
        } else if self.lines.iter().any(Line::is_away) {
            AWAY
        } else {
            return;
        };
        if self.pacing.is_some_and(|before| before <= pace) {
            return;
        }
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: 0,
                tv_nsec: pace,
            },
        };
        let set = timerfd_settime(&self.pace, TimerfdTimerFlags::empty(), &once);
        self.pacing = set.is_ok().then_some(pace);
        if self.pacing.is_none() {
            // It cannot fail; whatever it is, the next byte wakes.
            self.lines.iter_mut().for_each(Line::arm);
        }
    }

    /// Somebody wants the guest to power off, once for each byte.
    fn shut_down(&mut self, ops: &mut EventOps<'_>) {
        let Some((file, patience)) = &mut self.stop.shutdown else {
            return;
        };
        let mut buffer = [0; 8];
        match read_now(file, &mut buffer) {
            Ok(len @ 1..) => {
                // A guest that stands still cannot hear of its power button.
                self.engine.resume();
                for _ in 0..len {
                    self.handle.request_shutdown(*patience);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Nobody can ask any more.
            Ok(_) | Err(_) => {
                let _ = ops.remove(Events::empty(file));
                self.stop.shutdown = None;
            }
        }
    }
}

impl<E: Engine> MutEventSubscriber for MainLoop<E> {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            STOP => return self.handle.request_stop(),
            SHUTDOWN => return self.shut_down(ops),
            DEADLINE => {
                let mut expirations = [0; 8];
                if rustix::io::read(self.handle.deadline(), &mut expirations).is_ok() {
                    self.handle.deadline_passed();
                }
                return;
            }
            REQUESTED => {
                self.handle.requested().clear();
                return self.engine.serve();
            }
            NEWS => {
                for done in self.engine.news() {
                    let _ = ops.remove(Events::empty(&done));
                }
                return;
            }
            // The loop itself looks at the handle.
            END => return,
            _ => {}
        }
        if events.data() == LOOK {
            self.pacing = None;
            for line in &mut self.lines {
                line.look(ops);
                line.look_for_terminal(ops);
            }
        } else if let Some(line) = self.lines.get_mut((events.data() >> LINE_SHIFT) as usize) {
            line.process(events.data() & ((1 << LINE_SHIFT) - 1), ops);
        }
        self.set_pace();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        // These can be added once, short of memory for the kernel's bookkeeping; a regular file that
        // an embedder gives to stop the VM cannot.
        let mut add = |event: RawFd, data| {
            if let Err(error) = ops.add(Events::with_data_raw(event, data, EventSet::IN)) {
                log::error!("the main loop cannot watch an event: {error}");
            }
        };
        add(self.handle.event().as_raw_fd(), END);
        add(self.handle.deadline().as_raw_fd(), DEADLINE);
        add(self.handle.requested().as_raw_fd(), REQUESTED);
        if let Some(stop) = &self.stop.end {
            add(stop.as_raw_fd(), STOP);
        }
        if let Some((shutdown, _)) = &self.stop.shutdown {
            add(shutdown.as_raw_fd(), SHUTDOWN);
        }
        let pace = EventSet::IN | EventSet::EDGE_TRIGGERED;
        if let Err(error) = ops.add(Events::with_data(&self.pace, LOOK, pace)) {
            log::error!("the main loop cannot watch a timer: {error}");
        }
        for watched in self.engine.watched() {
            if let Err(error) = ops.add(Events::with_data_raw(watched, NEWS, EventSet::IN)) {
                log::error!("the main loop cannot watch a child: {error}");
            }
        }
        for line in &mut self.lines {
            line.init(ops);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
