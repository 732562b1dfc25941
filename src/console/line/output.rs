//! Output on its way from the guest: written as the reader takes it, and at the end waited for, but not for ever.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::poll::PollContext;

use super::{Line, OUTPUT};
use crate::control::event::Happening;
use crate::control::requests::Requests;

/// One write to the output. A pipe that polls writable takes this much without blocking.
const CHUNK: usize = 4096;
/// How long a reader may make no progress at the VM's end before the rest is dropped; and when somebody
/// outside has asked for the end.
const PATIENCE: Timespec = seconds(10);
const HURRY: Timespec = seconds(1);

/// How long a device may take to print what it has, when there is room for it.
const DEVICE: Duration = Duration::from_secs(1);

const fn seconds(seconds: i64) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    }
}

/// How an attempt to write went.
enum Progress {
    Some,
    None,
    /// The output takes no more, ever.
    Closed,
}

impl Line {
    /// Writes one chunk of the ring. The guest may go on filling the ring meanwhile.
    fn write_chunk(&mut self) -> Progress {
        let mut chunk = [0; CHUNK];
        let (len, position) = self.port.output.ring.peek(&mut chunk);
        let chunk = chunk.get(..len).unwrap_or_default();
        let Some(output) = &mut self.output else {
            // Nobody reads: drop it.
            self.watch.see(chunk);
            if self.closed {
                self.lost = self.lost.saturating_add(len as u64);
            }
            self.port.output.ring.consume(position + len as u64);
            return Progress::Some;
        };
        match output.write(chunk) {
            Ok(0) => Progress::None,
            Ok(written) => {
                self.watch.see(chunk.get(..written).unwrap_or_default());
                self.port.output.ring.consume(position + written as u64);
                Progress::Some
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Progress::None,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Progress::Some,
            Err(error) => {
                let cause = format!("console output is closed: {error}{}", what_it_means(&error));
                log::warn!("{cause}; what the guest prints there is dropped, and counted");
                // Once for each console.
                self.handle.publish(Happening::Error {
                    device: None,
                    cause,
                    times: 1,
                });
                self.closed = true;
                Progress::Closed
            }
        }
    }

    pub(super) fn write_output(&mut self, ops: &mut EventOps<'_>) {
        // Bounded by the ring's size: the guest may go on writing, the loop comes back for that.
        for _ in 0..16 {
            if self.port.output.ring.is_empty() || !self.is_writable() {
                break;
            }
            match self.write_chunk() {
                Progress::Some => {}
                Progress::None => break,
                Progress::Closed => {
                    // While it is still open: afterwards epoll would not know the descriptor, and
                    // would go on reporting a file that is open elsewhere.
                    self.unwatch_output(ops);
                    self.output = None;
                }
            }
        }
        if self.port.output.ring.is_empty() {
            self.unwatch_output(ops);
            self.unattended = true;
            return;
        }
        let Some(output) = &self.output else {
            // Come back for the rest.
            let _ = self.port.output.wake.write(1);
            return;
        };
        if !self.watching_output {
            let events = Events::with_data(output, self.data(OUTPUT), EventSet::OUT);
            match ops.add(events) {
                Ok(()) => self.watching_output = true,
                // A regular file takes everything at any time: come back at once.
                Err(_) => drop(self.port.output.wake.write(1)),
            }
        }
    }

    fn unwatch_output(&mut self, ops: &mut EventOps<'_>) {
        if let Some(output) = &self.output
            && std::mem::take(&mut self.watching_output)
        {
            let _ = ops.remove(Events::empty(output));
        }
    }

    fn is_writable(&self) -> bool {
        self.output
            .as_ref()
            .is_none_or(|output| wait_writable(output, &Timespec::default()))
    }

    /// At the end: everything the guest printed goes out, unless the reader stalls or somebody outside is in
    /// a hurry. Once before the devices end, and once more for what their ends bring.
    pub(crate) fn drain(&mut self, requests: &Requests) {
        while !self.given_up {
            while !self.port.output.ring.is_empty() {
                let ready = self
                    .output
                    .as_ref()
                    .is_none_or(|output| wait_for_reader(output, requests));
                if !ready {
                    self.given_up = true;
                    return;
                }
                match self.write_chunk() {
                    Progress::Some | Progress::None => {}
                    Progress::Closed => self.output = None,
                }
            }
            // A device that has waited for room is on its way.
            let wake = &self.port.output.wake;
            let _ = wake.read();
            let more = !self.port.output.ring.arm()
                || self.port.output.ring.is_waited_for() && is_woken(wake);
            if !more {
                return;
            }
        }
    }
}

/// What an error of a write says to somebody who does not know its name.
fn what_it_means(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSPC) => ", the file system is full",
        Some(libc::EDQUOT) => ", the user's quota is used up",
        Some(libc::EFBIG) => {
            ", the size limit of files (ulimit -f) or of the file system is reached"
        }
        Some(libc::EPIPE | libc::ECONNRESET) => ", its reader is gone",
        Some(libc::EIO) => ", the terminal or the disk is gone",
        _ => "",
    }
}

/// Waits until the output takes bytes; `false` when it takes none for too long.
fn wait_for_reader(output: &File, requests: &Requests) -> bool {
    let asked = [
        requests.end.as_ref().map(AsFd::as_fd),
        requests.shutdown.as_ref().map(|(fd, _)| fd.as_fd()),
    ];
    let mut fds = vec![PollFd::new(output, PollFlags::OUT)];
    fds.extend(
        asked
            .iter()
            .flatten()
            .map(|fd| PollFd::new(fd, PollFlags::IN)),
    );
    let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
    // A request that is there is there to the end.
    let ended = poll(&mut fds, Some(&PATIENCE)).is_ok_and(|ready| ready == 0);
    match fds.split_first() {
        Some((output, _)) if is_ready(output) => true,
        Some((_, asked)) if asked.iter().any(is_ready) => wait_writable(output, &HURRY),
        // A signal came in between.
        _ => !ended,
    }
}

fn wait_writable(output: &File, timeout: &Timespec) -> bool {
    let mut fds = [PollFd::new(output, PollFlags::OUT)];
    matches!(poll(&mut fds, Some(timeout)), Ok(1..))
}

/// Waits for a device that has something to print; `false` when it takes too long for it.
fn is_woken(wake: &EventFd) -> bool {
    PollContext::new().is_ok_and(|context| {
        context.add(wake, 0u32).is_ok()
            && context
                .wait_timeout(DEVICE)
                .is_ok_and(|events| events.iter().next().is_some())
    })
}
