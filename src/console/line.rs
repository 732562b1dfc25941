//! A console of the host and the device of the guest that belongs to it.
//!
//! A console device (a UART, a virtio console) writes to a bounded ring and never waits. A line
//! moves the ring to the output descriptor when that takes bytes, and input to the device when that
//! has room. It decides what is dropped: output beyond the ring when the reader is slow or gone. Input is
//! never dropped: what the guest has no room for stays where it comes from, but for [`TYPED`](input::TYPED) bytes
//! of a terminal.
//!
//! The ring wakes the main loop for the first byte after silence. While the guest goes on printing, the
//! loop looks again after a while by itself, which costs the guest's threads nothing.

mod input;
mod output;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;

use event_manager::{EventOps, EventSet, Events};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::termios::tcgetwinsize;

use super::escape::Escape;
use super::{Console, Port, in_background};
use crate::Error;
use crate::control::handle::VmHandle;
use crate::timeline::OutputWatch;
use crate::wake::Wake;

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

/// A console and its device.
pub(crate) struct Line {
    /// The bits above what its events are about.
    number: u32,
    input: Option<File>,
    output: Option<File>,
    /// Stands in for an input that epoll refuses and that is always readable.
    always_ready: Wake,
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
        let always_ready = Wake::new()?;
        always_ready.set();
        let mut line = Self {
            number,
            input: console.input,
            output: console.output,
            always_ready,
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

    /// Nothing of it is watched any more, until [`Self::init`].
    pub(crate) fn rest(&mut self) {
        self.watching_input = false;
        self.watching_output = false;
        // What is there, and what could not be written, is looked at again.
        self.arm();
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
