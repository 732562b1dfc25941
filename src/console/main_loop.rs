//! The VM's main loop.
//!
//! A console device (a UART, a virtio console) writes to a bounded ring and never waits. This loop
//! moves the ring to the output descriptor when that takes bytes, and input to the device when that
//! has room. It decides what is dropped: output beyond the ring when the reader is slow or gone, and
//! terminal input beyond [`PENDING`] bytes when the guest does not read.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::termios::tcgetwinsize;
use vmm_sys_util::eventfd::EventFd;

use super::{Console, EscapeKeys, Port};
use crate::Error;
use crate::control::VmHandle;
use crate::timeline::{OutputWatch, Timeline};

/// Input kept for a guest that does not read, in bytes.
const PENDING: usize = 4096;
/// One write to the output. A pipe that polls writable takes this much without blocking.
const CHUNK: usize = 4096;
/// How long a reader may make no progress at the VM's end before the rest is dropped; and when somebody
/// outside has asked for the end.
const PATIENCE: Timespec = seconds(10);
const HURRY: Timespec = seconds(1);

const fn seconds(seconds: i64) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    }
}

const HELP: &str =
    "\r\nCtrl-a x  end the VM\r\nCtrl-a h  this help\r\nCtrl-a Ctrl-a  send Ctrl-a\r\n";

/// Reads what is there now. A socket may be shared and empty by the time it is read.
fn read_now(input: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    match recv(&*input, &mut *buffer, RecvFlags::DONTWAIT) {
        Ok((len, _)) => Ok(len),
        Err(Errno::NOTSOCK) => input.read(buffer),
        Err(error) => Err(error.into()),
    }
}

/// Descriptors by which somebody outside wants the VM to end.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// Readable when it shall end at once.
    pub(crate) end: Option<OwnedFd>,
    /// Readable when the guest shall power off, and how long it may take.
    pub(crate) shutdown: Option<(File, Duration)>,
}

/// What the main loop gives back at the VM's end.
pub(crate) struct Ended<T> {
    pub(crate) lines: Vec<(Console, Port)>,
    pub(crate) stop: Requests,
    /// What became of what ran.
    pub(crate) rest: T,
}

/// Runs the VM's main loop until the VM ends, then writes out what the guest printed. `end_all` ends
/// all that prints, before the last of the output goes out.
pub(crate) fn main_loop<T>(
    consoles: Vec<(Console, Port)>,
    stop: Requests,
    handle: VmHandle,
    timeline: &Timeline,
    end_all: impl FnOnce() -> T,
) -> Result<Ended<T>, Error> {
    let failed = |error: event_manager::Error| {
        Error::host("the main loop failed")(match error {
            event_manager::Error::Epoll(errno) => errno.into(),
            other => io::Error::other(other.to_string()),
        })
    };
    let lines = (0..)
        .zip(consoles)
        .map(|(number, (console, port))| {
            let watch = OutputWatch::new(timeline.clone());
            Line::new(number, console, port, handle.clone(), watch)
        })
        .collect::<Result<_, _>>()?;
    let main_loop = MainLoop {
        lines,
        stop,
        handle: handle.clone(),
    };
    let mut events = EventManager::new().map_err(failed)?;
    let id = events.add_subscriber(main_loop);
    while !handle.has_ended() {
        match events.run() {
            Ok(_) => {}
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let rest = end_all();
    let MainLoop { lines, stop, .. } = events.remove_subscriber(id).map_err(failed)?;
    let lines = lines.into_iter().map(|line| line.drain(&stop)).collect();
    Ok(Ended { lines, stop, rest })
}

/// What an event of the main loop is about.
const END: u32 = u32::MAX;
const STOP: u32 = u32::MAX - 1;
const SHUTDOWN: u32 = u32::MAX - 2;
const DEADLINE: u32 = u32::MAX - 3;
/// Or one of these of a line, whose number is in the bits above.
const RING: u32 = 0;
const ROOM: u32 = 1;
const INPUT: u32 = 2;
const OUTPUT: u32 = 3;
const RESIZED: u32 = 4;
const LINE_SHIFT: u32 = 3;

struct MainLoop {
    lines: Vec<Line>,
    stop: Requests,
    handle: VmHandle,
}

impl MainLoop {
    /// Somebody wants the guest to power off, once for each byte.
    fn shut_down(&mut self, ops: &mut EventOps<'_>) {
        let Some((file, patience)) = &mut self.stop.shutdown else {
            return;
        };
        let mut buffer = [0; 8];
        match read_now(file, &mut buffer) {
            Ok(len @ 1..) => {
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

/// How an attempt to write went.
enum Progress {
    Some,
    None,
    /// The output takes no more, ever.
    Closed,
}

/// A console and its device.
struct Line {
    /// In front of the data of its events.
    number: u32,
    input: Option<File>,
    output: Option<File>,
    /// Stands in for an input that epoll refuses and that is always readable.
    always_ready: EventFd,
    escape: Escape,
    port: Port,
    resized: Option<File>,
    /// Input that the device has not taken yet.
    pending: Vec<u8>,
    watching_output: bool,
    watch: OutputWatch,
    handle: VmHandle,
}

impl Line {
    fn new(
        number: u32,
        console: Console,
        port: Port,
        handle: VmHandle,
        watch: OutputWatch,
    ) -> Result<Self, Error> {
        console
            .start()
            .map_err(Error::host("cannot empty the console's file"))?;
        let line = Self {
            number,
            input: console.input,
            output: console.output,
            always_ready: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                .and_then(|event| event.write(1).map(|()| event))
                .map_err(Error::host("cannot create an eventfd"))?,
            escape: Escape {
                keys: console.escape,
                pending: false,
            },
            port,
            resized: console.resized,
            pending: Vec::new(),
            watching_output: false,
            watch,
            handle,
        };
        line.tell_size();
        Ok(line)
    }

    fn data(&self, what: u32) -> u32 {
        self.number << LINE_SHIFT | what
    }

    /// Tells the device how large its terminal is, if it is one.
    fn tell_size(&self) {
        if let (Some(resize), Some(output)) = (&self.port.resize, &self.output)
            && let Ok(size) = tcgetwinsize(output)
        {
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
    fn watch_input(&self, ops: &mut EventOps<'_>) {
        let Some(input) = &self.input else { return };
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

    fn unwatch_input(&self, ops: &mut EventOps<'_>) {
        if let Some(input) = &self.input {
            // One of the two is registered.
            let _ = ops.remove(Events::empty(input));
            let _ = ops.remove(Events::empty(&self.always_ready));
        }
    }

    fn read_input(&mut self, ops: &mut EventOps<'_>) {
        let mut buffer = [0; 256];
        let Some(input) = &mut self.input else { return };
        match read_now(input, &mut buffer) {
            Ok(len @ 1..) => {
                let keys = self.escape.filter(&buffer[..len.min(buffer.len())]);
                if keys.help {
                    // Writing to the ring cannot fail.
                    let _ = self.port.output.ring.write_all(HELP.as_bytes());
                }
                if keys.stop {
                    return self.handle.request_stop();
                }
                self.pending.extend_from_slice(&keys.bytes);
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

    /// Offers pending input to the device. A pipe or file is read again when all was taken; a
    /// terminal is always read, so that the escape keys work, and keeps at most [`PENDING`] bytes.
    fn offer_input(&mut self, ops: &mut EventOps<'_>) {
        let taken = (self.port.receive)(&self.pending).min(self.pending.len());
        self.pending.drain(..taken);
        self.pending.truncate(PENDING);
        if self.escape.keys == EscapeKeys::Off && !self.pending.is_empty() {
            self.unwatch_input(ops);
        }
    }

    fn guest_has_room(&mut self, ops: &mut EventOps<'_>) {
        // Reading only resets the counter.
        let _ = self.port.room.read();
        if self.pending.is_empty() {
            return;
        }
        self.offer_input(ops);
        if self.pending.is_empty() && self.escape.keys == EscapeKeys::Off {
            self.watch_input(ops);
        }
    }

    /// Writes one chunk of the ring. The guest may go on filling the ring meanwhile.
    fn write_chunk(&mut self) -> Progress {
        let mut chunk = [0; CHUNK];
        let (len, position) = self.port.output.ring.peek(&mut chunk);
        let chunk = chunk.get(..len).unwrap_or_default();
        let Some(output) = &mut self.output else {
            // Nobody reads: drop it.
            self.watch.see(chunk);
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
                log::warn!("console output is closed: {error}");
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
        let Some(output) = &self.output else {
            if !self.port.output.ring.is_empty() {
                // Come back for the rest.
                let _ = self.port.output.wake.write(1);
            }
            return;
        };
        if self.port.output.ring.is_empty() {
            self.unwatch_output(ops);
        } else if !self.watching_output {
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
    /// a hurry. Gives the ends of the line back.
    fn drain(mut self, requests: &Requests) -> (Console, Port) {
        while !self.port.output.ring.is_empty() {
            let ready = self
                .output
                .as_ref()
                .is_none_or(|output| wait_for_reader(output, requests));
            if !ready {
                break;
            }
            match self.write_chunk() {
                Progress::Some | Progress::None => {}
                Progress::Closed => self.output = None,
            }
        }
        let ring = &self.port.output.ring;
        let dropped = ring.dropped().saturating_add(ring.len() as u64);
        if dropped > 0 {
            log::warn!("{dropped} bytes of console output were dropped: the reader was too slow");
        }
        let console = Console {
            input: self.input,
            output: self.output,
            escape: self.escape.keys,
            file: None,
            resized: self.resized,
        };
        (console, self.port)
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

impl MutEventSubscriber for MainLoop {
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
            // The loop itself looks at the handle.
            END => return,
            _ => {}
        }
        let Some(line) = self.lines.get_mut((events.data() >> LINE_SHIFT) as usize) else {
            return;
        };
        match events.data() & ((1 << LINE_SHIFT) - 1) {
            RING => {
                let _ = line.port.output.wake.read();
                line.write_output(ops);
            }
            OUTPUT => line.write_output(ops),
            ROOM => line.guest_has_room(ops),
            INPUT => line.read_input(ops),
            RESIZED => line.terminal_resized(ops),
            _ => {}
        }
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
        if let Some(stop) = &self.stop.end {
            add(stop.as_raw_fd(), STOP);
        }
        if let Some((shutdown, _)) = &self.stop.shutdown {
            add(shutdown.as_raw_fd(), SHUTDOWN);
        }
        for line in &self.lines {
            add(line.port.output.wake.as_raw_fd(), line.data(RING));
            add(line.port.room.as_raw_fd(), line.data(ROOM));
            if let Some(resized) = &line.resized {
                add(resized.as_raw_fd(), line.data(RESIZED));
            }
        }
        for line in &self.lines {
            line.watch_input(ops);
        }
    }
}

/// The state of the Ctrl-a escape.
struct Escape {
    keys: EscapeKeys,
    pending: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Keys {
    bytes: Vec<u8>,
    stop: bool,
    help: bool,
}

impl Escape {
    const CTRL_A: u8 = 1;

    /// Splits input into commands and what the guest gets.
    fn filter(&mut self, input: &[u8]) -> Keys {
        let mut keys = Keys::default();
        if self.keys == EscapeKeys::Off {
            keys.bytes = input.to_vec();
            return keys;
        }
        for &byte in input {
            match (std::mem::take(&mut self.pending), byte) {
                (false, Self::CTRL_A) => self.pending = true,
                (true, b'x' | b'X') => keys.stop = true,
                (true, b'h' | b'?') => keys.help = true,
                (false, _) | (true, Self::CTRL_A) => keys.bytes.push(byte),
                (true, _) => keys.bytes.extend([Self::CTRL_A, byte]),
            }
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(chunks: &[&[u8]], keys: EscapeKeys) -> Keys {
        let mut escape = Escape {
            keys,
            pending: false,
        };
        let mut all = Keys::default();
        for chunk in chunks {
            let keys = escape.filter(chunk);
            all.bytes.extend(keys.bytes);
            all.stop |= keys.stop;
            all.help |= keys.help;
        }
        all
    }

    #[test]
    fn escape_keys_are_found_across_reads_and_kept_from_the_guest() {
        let keys = filter(&[b"ab\x01", b"xcd"], EscapeKeys::On);
        assert_eq!(
            keys,
            Keys {
                bytes: b"abcd".to_vec(),
                stop: true,
                help: false
            }
        );
        assert!(filter(&[b"\x01h"], EscapeKeys::On).help);
    }

    #[test]
    fn ctrl_a_twice_sends_one_and_unknown_keys_send_both() {
        assert_eq!(filter(&[b"\x01\x01"], EscapeKeys::On).bytes, b"\x01");
        assert_eq!(filter(&[b"\x01q"], EscapeKeys::On).bytes, b"\x01q");
    }

    #[test]
    fn without_escape_keys_every_byte_reaches_the_guest() {
        assert_eq!(filter(&[b"\x01x"], EscapeKeys::Off).bytes, b"\x01x");
    }
}
