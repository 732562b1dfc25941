//! A console of the host and the device of the guest that belongs to it.
//!
//! A console device (a UART, a virtio console) writes to a bounded ring and never waits. A line
//! moves the ring to the output descriptor when that takes bytes, and input to the device when that
//! has room. It decides what is dropped: output beyond the ring when the reader is slow or gone. Input is
//! never dropped: what the guest has no room for stays where it comes from, but for [`TYPED`] bytes of
//! a terminal.
//!
//! The ring wakes the main loop for the first byte after silence. While the guest goes on printing, the
//! loop looks again after a while by itself, which costs the guest's threads nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::termios::tcgetwinsize;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::poll::PollContext;

use super::escape::{Escape, HELP};
use super::{Console, EscapeKeys, Port, in_background};
use crate::Error;
use crate::control::event::Happening;
use crate::control::handle::VmHandle;
use crate::control::requests::Requests;
use crate::timeline::OutputWatch;

/// Input of a terminal that is kept for a guest that does not read it, in bytes: so far the escape keys are
/// looked for. What was typed beyond stays in the terminal.
const TYPED: usize = 1 << 20;
/// One read of the input.
const READ: usize = 4096;
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

/// Reads what is there now. A socket may be shared and empty by the time it is read.
pub(crate) fn read_now(input: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    match recv(&*input, &mut *buffer, RecvFlags::DONTWAIT) {
        Ok((len, _)) => Ok(len),
        Err(Errno::NOTSOCK) => input.read(buffer),
        Err(error) => Err(error.into()),
    }
}

/// What an event of a line is about.
const RING: u32 = 0;
const ROOM: u32 = 1;
const INPUT: u32 = 2;
const OUTPUT: u32 = 3;
const RESIZED: u32 = 4;

/// How an attempt to write went.
enum Progress {
    Some,
    None,
    /// The output takes no more, ever.
    Closed,
}

/// A console and its device.
pub(crate) struct Line {
    /// The bits above what its events are about.
    number: u32,
    input: Option<File>,
    output: Option<File>,
    /// Stands in for an input that epoll refuses and that is always readable.
    always_ready: EventFd,
    escape: Escape,
    port: Port,
    resized: Option<File>,
    /// The size that the device knows.
    told: Option<(u16, u16)>,
    /// Input that the device has not taken yet.
    pending: VecDeque<u8>,
    watching_input: bool,
    /// The terminal belongs to another job now.
    away: bool,
    /// That a terminal's input waits was said.
    said_full: bool,
    watching_output: bool,
    /// The output has taken its last byte, and so many came for it afterwards.
    closed: bool,
    lost: u64,
    /// At the end the reader has made no progress for too long.
    given_up: bool,
    /// Everything is written, and the ring does not wake: somebody has to look again.
    unattended: bool,
    watch: OutputWatch,
    handle: VmHandle,
}

impl Line {
    pub(crate) fn new(
        number: u32,
        console: Console,
        port: Port,
        handle: VmHandle,
        watch: OutputWatch,
    ) -> Result<Self, Error> {
        console
            .start()
            .map_err(Error::host("cannot empty the console's file"))?;
        let mut line = Self {
            number,
            input: console.input,
            output: console.output,
            always_ready: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                .and_then(|event| event.write(1).map(|()| event))
                .map_err(Error::host("cannot create an eventfd"))?,
            escape: Escape::new(console.escape),
            port,
            resized: console.resized,
            told: None,
            pending: console.pending,
            watching_input: false,
            away: false,
            said_full: false,
            watching_output: false,
            closed: console.closed,
            lost: 0,
            given_up: false,
            unattended: false,
            watch,
            handle,
        };
        line.tell_size();
        // The last machine may have left something.
        line.arm();
        Ok(line)
    }

    pub(crate) fn init(&mut self, ops: &mut EventOps<'_>) {
        let events = [
            (Some(self.port.output.wake.as_raw_fd()), RING),
            (Some(self.port.room.as_raw_fd()), ROOM),
            (self.resized.as_ref().map(AsRawFd::as_raw_fd), RESIZED),
        ];
        for (event, what) in events {
            // Each can be added once, short of memory for the kernel's bookkeeping.
            if let Some(event) = event
                && let Err(error) =
                    ops.add(Events::with_data_raw(event, self.data(what), EventSet::IN))
            {
                log::error!("the main loop cannot watch an event of a console: {error}");
            }
        }
        // What the last machine has not taken comes first.
        self.offer_input(ops);
    }

    pub(crate) fn process(&mut self, what: u32, ops: &mut EventOps<'_>) {
        match what {
            RING => {
                let _ = self.port.output.wake.read();
                self.write_output(ops);
            }
            OUTPUT => self.write_output(ops),
            ROOM => self.guest_has_room(ops),
            INPUT => self.read_input(ops),
            RESIZED => self.terminal_resized(ops),
            _ => {}
        }
    }

    /// Whether somebody has to look again.
    pub(crate) fn is_unattended(&self) -> bool {
        self.unattended
    }

    /// The next byte of the guest wakes the main loop; those that are there do so now.
    pub(crate) fn arm(&mut self) {
        self.unattended = false;
        if !self.port.output.ring.arm() {
            // A full counter wakes as well.
            let _ = self.port.output.wake.write(1);
        }
    }

    /// Whether it waits for its terminal to be its own again.
    pub(crate) fn is_away(&self) -> bool {
        self.away
    }

    /// Looks whether the terminal is its own again.
    pub(crate) fn look_for_terminal(&mut self, ops: &mut EventOps<'_>) {
        if self.away
            && self
                .input
                .as_ref()
                .is_some_and(|input| !in_background(input))
        {
            self.away = false;
            self.tell_size();
            self.offer_input(ops);
        }
    }

    /// Looks again at what was left unattended: a guest that was silent meanwhile wakes us, one that goes
    /// on printing is looked at again.
    pub(crate) fn look(&mut self, ops: &mut EventOps<'_>) {
        if std::mem::take(&mut self.unattended) && !self.port.output.ring.arm() {
            self.write_output(ops);
        }
    }

    fn data(&self, what: u32) -> u32 {
        self.number | what
    }

    /// Tells the device how large its terminal is, if it is one.
    fn tell_size(&mut self) {
        if let (Some(resize), Some(output)) = (&self.port.resize, &self.output)
            && let Ok(size) = tcgetwinsize(output)
            && self.told != Some((size.ws_col, size.ws_row))
        {
            self.told = Some((size.ws_col, size.ws_row));
            resize(size.ws_col, size.ws_row);
        }
    }

    fn terminal_resized(&mut self, ops: &mut EventOps<'_>) {
        let mut buffer = [0; 64];
        if let Some(resized) = &mut self.resized {
            // However many there were, the size is looked at once.
            if matches!(read_now(resized, &mut buffer), Ok(0)) {
                // Whoever tells is gone, and the descriptor stays ready.
                let _ = ops.remove(Events::empty(resized));
                self.resized = None;
            }
        }
        self.tell_size();
    }

    /// Watches the input, or what stands in for it.
    fn watch_input(&mut self, ops: &mut EventOps<'_>) {
        let Some(input) = &self.input else { return };
        if std::mem::replace(&mut self.watching_input, true) {
            return;
        }
        if ops
            .add(Events::with_data(input, self.data(INPUT), EventSet::IN))
            .is_err()
        {
            // EPERM: a regular file or /dev/null, ready at any time. When both fail, the guest
            // gets no input, which is all that can be done.
            let ready = Events::with_data(&self.always_ready, self.data(INPUT), EventSet::IN);
            let _ = ops.add(ready);
        }
    }

    fn unwatch_input(&mut self, ops: &mut EventOps<'_>) {
        if let Some(input) = &self.input
            && std::mem::take(&mut self.watching_input)
        {
            // One of the two is registered.
            let _ = ops.remove(Events::empty(input));
            let _ = ops.remove(Events::empty(&self.always_ready));
        }
    }

    fn read_input(&mut self, ops: &mut EventOps<'_>) {
        let mut buffer = [0; READ];
        let Some(input) = &mut self.input else { return };
        if self.escape.keys == EscapeKeys::On && in_background(&*input) {
            // These keys are another job's, and reading them would stop this process.
            self.unwatch_input(ops);
            self.away = true;
            return;
        }
        match read_now(input, &mut buffer) {
            Ok(len @ 1..) => {
                let keys = self.escape.filter(&buffer[..len.min(buffer.len())]);
                if keys.help {
                    self.port.output.ring.keep(HELP.as_bytes());
                }
                if keys.stop {
                    return self.handle.request_stop();
                }
                self.pending.extend(keys.bytes);
                self.offer_input(ops);
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            // End of input, or the terminal is gone: the guest goes on without.
            Ok(_) | Err(_) => {
                self.unwatch_input(ops);
                self.input = None;
            }
        }
    }

    /// Offers pending input to the device. A pipe or file is read again when all was taken; a terminal is
    /// read further, so that the escape keys work, until [`TYPED`] bytes wait.
    fn offer_input(&mut self, ops: &mut EventOps<'_>) {
        loop {
            let (first, _) = self.pending.as_slices();
            if first.is_empty() {
                break;
            }
            let offered = first.len();
            let taken = (self.port.receive)(first).min(offered);
            self.pending.drain(..taken);
            if taken < offered {
                break;
            }
        }
        if self.input_may_come() && !self.away {
            self.watch_input(ops);
        } else {
            self.unwatch_input(ops);
        }
    }

    /// Whether there is a place for what comes.
    fn input_may_come(&mut self) -> bool {
        if self.escape.keys == EscapeKeys::Off {
            return self.pending.is_empty();
        }
        let full = self.pending.len() >= TYPED;
        if full && !std::mem::replace(&mut self.said_full, true) {
            log::warn!(
                "the guest does not read its console, and {} bytes of input wait for it; the terminal is read \
                 again, for the escape keys too, when it does; until then SIGINT or SIGTERM ends the VM",
                self.pending.len()
            );
        }
        !full
    }

    fn guest_has_room(&mut self, ops: &mut EventOps<'_>) {
        // Reading only resets the counter.
        let _ = self.port.room.read();
        self.offer_input(ops);
    }

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

    fn write_output(&mut self, ops: &mut EventOps<'_>) {
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

    /// Says what was lost, and gives the ends of the line back.
    pub(crate) fn end(self) -> (Console, Port) {
        let ring = &self.port.output.ring;
        let dropped = ring.dropped().saturating_add(ring.len() as u64);
        if dropped > 0 {
            log::warn!("{dropped} bytes of console output were dropped: the reader was too slow");
        }
        if self.lost > 0 {
            log::warn!(
                "{} bytes of console output were dropped: the output was closed",
                self.lost
            );
        }
        let console = Console {
            input: self.input,
            output: self.output,
            escape: self.escape.keys,
            file: None,
            resized: self.resized,
            pending: self.pending,
            closed: self.closed,
        };
        (console, self.port)
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
