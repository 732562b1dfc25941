//! The service in a network device: the stack behind the library's hook, with the host's clock.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use vmm_reference::FrameHook;

use super::stack::Stack;
use super::store::Mmds;

/// The service of one network device.
#[derive(Debug)]
pub(crate) struct Service {
    stack: Stack,
    timer: OwnedFd,
}

impl Service {
    /// # Errors
    /// When the host has no timer or no random bytes.
    pub(crate) fn new(address: std::net::Ipv4Addr, mmds: Arc<Mutex<Mmds>>) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let mut first = [0; 4];
        getrandom(&mut first, GetRandomFlags::empty())?;
        Ok(Self {
            stack: Stack::new(address, mmds, u32::from_ne_bytes(first)),
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
        })
    }

    /// Nothing goes out before that time.
    fn sleep_until(&self, time: Instant, now: Instant) {
        // A timer of 0 is none.
        let wait = time
            .saturating_duration_since(now)
            .max(Duration::from_nanos(1));
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let once = Itimerspec {
            it_interval: zero,
            it_value: Timespec::try_from(wait).unwrap_or(zero),
        };
        // It cannot fail: descriptor and times are right.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }
}

impl FrameHook for Service {
    fn wants(&mut self, start: &[u8]) -> bool {
        self.stack.wants(start)
    }

    fn take(&mut self, frame: &[u8]) {
        self.stack.take(frame, Instant::now());
    }

    fn give(&mut self, room: &mut [u8]) -> usize {
        let now = Instant::now();
        let len = self.stack.give(room, now);
        if len == 0
            && let Some(time) = self.stack.wakes_at()
        {
            self.sleep_until(time, now);
        }
        len
    }

    fn wakes(&self) -> Option<RawFd> {
        Some(self.timer.as_raw_fd())
    }

    fn reset(&mut self) {
        self.stack.reset();
    }
}
