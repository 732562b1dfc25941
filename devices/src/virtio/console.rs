//! The console device (VIRTIO 1.3, 5.3): one port, many bytes for one interrupt.
//!
//! Output goes to a bounded buffer. While that is full the driver does not get its buffers back, unless
//! it was chosen that the oldest bytes go. Input waits in a bounded buffer until the driver has room for it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Chain, ConfigSpace, Event, Monitor, QueueError, Queues, VirtioDevice};
use crate::metrics::Operation;
use crate::state::{ConsoleState, StateError, VirtioDeviceState};
use crate::{Change, ChangeError, OutputRing, Overflow, lock};

/// Feature bit (5.3.3): the configuration has the size.
const VIRTIO_CONSOLE_F_SIZE: u32 = 0;
const QUEUE_SIZE: u16 = 128;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// The source that says that the output has room.
const OUTPUT_ROOM: usize = 1;
/// Input that waits for the driver, in bytes.
const WAITING: usize = 4096;
/// The most bytes of one request that are printed; drivers send a page at most.
const MOST: usize = 64 << 10;

#[derive(Debug, Default)]
struct Input {
    bytes: VecDeque<u8>,
    /// Bytes were refused: say when there is room.
    refused: bool,
    resized: bool,
}

#[derive(Debug)]
struct Shared {
    input: Mutex<Input>,
    /// Wakes the device.
    wake: EventFd,
    /// Tells the sender that there is room.
    room: EventFd,
    config: Arc<ConfigSpace>,
}

/// The host's end of a console.
#[derive(Debug, Clone)]
pub struct ConsolePort(Arc<Shared>);

impl ConsolePort {
    /// Offers input and says how many bytes were taken.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut input = lock(&self.0.input);
        let room = WAITING.saturating_sub(input.bytes.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        input.bytes.extend(taken);
        input.refused = taken.len() < bytes.len();
        drop(input);
        self.wake();
        taken.len()
    }

    /// The terminal has this size now.
    pub fn resize(&self, columns: u16, rows: u16) {
        let [[a, b], [c, d]] = [columns.to_le_bytes(), rows.to_le_bytes()];
        self.0.config.update(0, &[a, b, c, d]);
        lock(&self.0.input).resized = true;
        self.wake();
    }

    fn wake(&self) {
        // A full counter means that the device wakes anyway.
        let _ = self.0.wake.write(1);
    }
}

/// A console.
pub struct VirtioConsole {
    shared: Arc<Shared>,
    output: OutputRing,
    overflow: Overflow,
    /// The output has room again.
    output_room: EventFd,
    chain: Chain,
    bytes: Vec<u8>,
    /// What is printed of a request that waits for room; its head, and where in `bytes` it goes on.
    held: Option<(u16, usize)>,
    /// Input waits for the driver's buffers.
    dry: bool,
    monitor: Arc<Monitor>,
    received: Arc<Operation>,
    transmitted: Arc<Operation>,
}

impl fmt::Debug for VirtioConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioConsole").finish_non_exhaustive()
    }
}

impl VirtioConsole {
    /// `output` gets what the guest prints, and `overflow` says what becomes of that when it is full;
    /// `room` is written when the port takes input again that it has refused.
    ///
    /// # Errors
    /// When there can be no eventfd.
    pub fn new(output: OutputRing, overflow: Overflow, room: EventFd) -> io::Result<Self> {
        let output_room = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        output.tell_room(output_room.try_clone()?);
        // Columns, rows, number of ports: the driver reads those that were negotiated.
        let config = ConfigSpace::new(vec![80, 0, 25, 0, 1, 0, 0, 0], 0..0);
        let mut monitor = Monitor::default();
        let (received, transmitted) = (monitor.operation("receive"), monitor.operation("transmit"));
        Ok(Self {
            shared: Arc::new(Shared {
                input: Mutex::default(),
                wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
                room,
                config: Arc::new(config),
            }),
            output,
            overflow,
            output_room,
            chain: Chain::default(),
            bytes: Vec::new(),
            held: None,
            dry: false,
            monitor: Arc::new(monitor),
            received,
            transmitted,
        })
    }

    /// The host's end.
    #[must_use]
    pub fn port(&self) -> ConsolePort {
        ConsolePort(Arc::clone(&self.shared))
    }

    /// Gives waiting input to the driver, as far as it has room. Says whether there may be more.
    fn receive(&mut self, queues: &mut Queues) -> Result<bool, QueueError> {
        let mut input = lock(&self.shared.input);
        if std::mem::take(&mut input.resized) {
            queues.config_changed();
        }
        let Some(ring) = queues.ring(RECEIVE) else {
            return Ok(false);
        };
        let before = input.bytes.len();
        let mut more = true;
        for _ in 0..ring.size() {
            let some = !input.bytes.is_empty();
            more = some && ring.pop(&mut self.chain)?;
            // However often it is looked at meanwhile.
            let dry = some && !more && !ring.is_stopping();
            if dry && !std::mem::replace(&mut self.dry, dry) {
                self.monitor.stalls.add(1);
            }
            if !more {
                break;
            }
            self.dry = false;
            let written = self
                .chain
                .write(ring.ram(), input.bytes.make_contiguous())?;
            input.bytes.drain(..(written as usize).min(before));
            ring.complete(self.chain.head(), written)?;
            self.received.succeed(written.into());
        }
        if input.bytes.len() < before && std::mem::take(&mut input.refused) {
            // A full counter means that the sender knows.
            let _ = self.shared.room.write(1);
        }
        Ok(more)
    }

    /// Prints what the driver sends, as far as the output has room. Says whether there may be more to do
    /// now; room wakes the device.
    fn transmit(&mut self, queues: &mut Queues) -> Result<bool, QueueError> {
        let Some(ring) = queues.ring(TRANSMIT) else {
            return Ok(false);
        };
        for _ in 0..ring.size() {
            let (head, from, was_held) = match self.held.take() {
                Some((head, from)) => (head, from, true),
                None if ring.pop(&mut self.chain)? => {
                    let len = self.chain.readable_len().min(MOST as u64);
                    self.bytes.resize(usize::try_from(len).unwrap_or(MOST), 0);
                    self.chain.read(ring.ram(), &mut self.bytes)?;
                    (self.chain.head(), 0, false)
                }
                None => {
                    self.output.settle();
                    return Ok(false);
                }
            };
            let rest = self.bytes.get(from..).unwrap_or_default();
            let taken = match self.overflow {
                Overflow::Wait => self.output.offer(rest),
                Overflow::Drop => {
                    // It takes everything.
                    let _ = self.output.write_all(rest);
                    rest.len()
                }
            };
            if taken < rest.len() {
                if !was_held {
                    self.monitor.stalls.add(1);
                }
                self.held = Some((head, from + taken));
                return Ok(false);
            }
            self.transmitted.succeed(self.bytes.len() as u64);
            ring.complete(head, 0)?;
        }
        Ok(true)
    }

    /// A request that waits for room goes to the output whole: nobody will come back for it.
    fn let_go(&mut self) -> Option<u16> {
        let (head, from) = self.held.take()?;
        self.transmitted.succeed(self.bytes.len() as u64);
        self.output.keep(self.bytes.get(from..).unwrap_or_default());
        Some(head)
    }
}

impl VirtioDevice for VirtioConsole {
    fn id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn name(&self) -> &'static str {
        "virtio-console"
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_CONSOLE_F_SIZE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.shared.config)
    }

    fn monitor(&self) -> Arc<Monitor> {
        Arc::clone(&self.monitor)
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.shared.wake.as_raw_fd(), self.output_room.as_raw_fd()]
    }

    fn serve(&mut self, event: Event, queues: &mut Queues) -> Result<bool, QueueError> {
        let more = match event {
            Event::Queue(TRANSMIT) | Event::Source(OUTPUT_ROOM) => self.transmit(queues)?,
            _ => self.receive(queues)?,
        };
        queues.publish()?;
        Ok(more)
    }

    fn close(&mut self, queue: usize, queues: &mut Queues) -> Result<(), QueueError> {
        if queue == TRANSMIT
            && let Some(head) = self.let_go()
            && let Some(ring) = queues.ring(TRANSMIT)
        {
            ring.complete(head, 0)?;
            queues.publish()?;
        }
        self.output.settle();
        Ok(())
    }

    fn save(&self) -> Result<VirtioDeviceState, StateError> {
        let mut size = [0; 4];
        self.shared.config.read(0, &mut size);
        let [a, b, c, d] = size;
        let unprinted = self.held.map(|(head, from)| {
            let rest = self.bytes.get(from..).unwrap_or_default();
            (head, rest.to_vec())
        });
        Ok(VirtioDeviceState::Console(ConsoleState {
            size: [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])],
            input: lock(&self.shared.input).bytes.iter().copied().collect(),
            unprinted,
        }))
    }

    /// The terminal here may have another size, which is told then; until it is, the driver has the one of before.
    fn load(&mut self, state: &VirtioDeviceState, runs: bool) -> Result<(), StateError> {
        let VirtioDeviceState::Console(state) = state else {
            return Err(StateError::Foreign);
        };
        if state.input.len() > WAITING {
            return Err(StateError::Range("input"));
        }
        self.held = None;
        if let Some((head, rest)) = &state.unprinted {
            if !runs || *head >= QUEUE_SIZE || rest.len() > MOST {
                return Err(StateError::Range("unprinted"));
            }
            self.held = Some((*head, 0));
            self.bytes.clone_from(rest);
        }
        let [[a, b], [c, d]] = state.size.map(u16::to_le_bytes);
        self.shared.config.load(0, &[a, b, c, d]);
        lock(&self.shared.input).bytes = state.input.iter().copied().collect();
        Ok(())
    }

    fn change(&mut self, change: &Change, _: Option<&Queues>) -> Result<(), ChangeError> {
        match change {
            Change::Size(size) => {
                self.port().resize(size.columns, size.rows);
                Ok(())
            }
            _ => Err(ChangeError::Foreign),
        }
    }

    fn stop(&mut self) {
        self.let_go();
        self.output.settle();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::virtio::GuestRam;
    use crate::virtio::testing::{DATA, Driver, queues, ram};

    struct Bench {
        ram: GuestRam,
        device: VirtioConsole,
        queues: Queues,
        output: OutputRing,
        room: EventFd,
    }

    fn bench() -> Bench {
        bench_that(Overflow::Drop)
    }

    fn bench_that(overflow: Overflow) -> Bench {
        let ram = ram();
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        let (output, room) = (OutputRing::new(16, event()), event());
        let sink = output.clone();
        let for_device = room.try_clone().unwrap();
        Bench {
            device: VirtioConsole::new(sink, overflow, for_device).unwrap(),
            queues: queues(&ram, 2),
            ram,
            output,
            room,
        }
    }

    #[test]
    fn what_the_guest_sends_is_printed_with_one_completion() {
        let mut bench = bench();
        let mut driver = Driver::of_queue(&bench.ram, TRANSMIT);
        driver.put(DATA, *b"hello");
        driver.request(&[(DATA, 2, false), (DATA + 2, 3, false)]);
        let used = driver.serve(&mut bench.device, &mut bench.queues);
        assert_eq!(used, [(0, 0)]);
        assert_eq!(bench.output.tail(), "hello");
        let read = bench.device.monitor().read();
        let transmitted = &read.operations["transmit"];
        assert_eq!((transmitted.requests, transmitted.bytes), (1, 5));
        // R19, R38: nothing, and far too much.
        driver.request(&[(DATA, 0, false)]);
        driver.serve(&mut bench.device, &mut bench.queues);
        driver.request(&[(DATA, 0x8_0000, false), (DATA, 0x8_0000, false)]);
        driver.serve(&mut bench.device, &mut bench.queues);
        assert_eq!(bench.device.bytes.len(), MOST);
    }

    fn read_all(output: &OutputRing) -> Vec<u8> {
        let mut buffer = [0; 64];
        let (len, position) = output.peek(&mut buffer);
        output.consume(position + len as u64);
        buffer[..len].to_vec()
    }

    #[test]
    fn a_slow_reader_holds_the_driver_back_and_gets_every_byte() {
        let mut bench = bench_that(Overflow::Wait);
        let mut driver = Driver::of_queue(&bench.ram, TRANSMIT);
        driver.put(DATA, *b"0123456789abcdefghijklmnopqrst");
        driver.put(DATA + 30, *b"uvwxyz");
        driver.descriptor(1, DATA + 30, 6, 0, 0);
        driver.request(&[(DATA, 30, false)]);
        driver.offer(1);
        let event = Event::Queue(TRANSMIT);
        bench.device.serve(event, &mut bench.queues).unwrap();
        assert_eq!(driver.used(), []);
        assert!(bench.output.is_waited_for());
        assert_eq!(read_all(&bench.output), b"0123456789abcdef");
        bench.device.output_room.read().unwrap();
        // Room for the rest of the first request and for a part of the second one.
        let event = Event::Source(OUTPUT_ROOM);
        bench.device.serve(event, &mut bench.queues).unwrap();
        assert_eq!(driver.used(), [(0, 0)]);
        assert_eq!(read_all(&bench.output), b"ghijklmnopqrstuv");
        bench.device.serve(event, &mut bench.queues).unwrap();
        assert_eq!(driver.used(), [(1, 0)]);
        assert_eq!(read_all(&bench.output), b"wxyz");
        assert!(!bench.output.is_waited_for());
        assert_eq!(bench.output.dropped(), 0);
        let read = bench.device.monitor().read();
        let transmitted = &read.operations["transmit"];
        assert_eq!((transmitted.requests, transmitted.bytes), (2, 36));
        assert_eq!(read.stalls, 2, "each of them waited once");
    }

    #[test]
    fn a_request_that_waits_is_printed_when_the_device_stops_or_its_queue_closes() {
        let mut bench = bench_that(Overflow::Wait);
        let mut driver = Driver::of_queue(&bench.ram, TRANSMIT);
        driver.put(DATA, *b"0123456789abcdefghij");
        driver.request(&[(DATA, 20, false)]);
        let event = Event::Queue(TRANSMIT);
        bench.device.serve(event, &mut bench.queues).unwrap();
        assert_eq!(driver.used(), []);
        bench.device.close(TRANSMIT, &mut bench.queues).unwrap();
        assert_eq!(driver.used(), [(0, 0)]);
        assert_eq!(read_all(&bench.output), b"0123456789abcdefghij");
        driver.request(&[(DATA, 20, false)]);
        let event = Event::Queue(TRANSMIT);
        bench.device.serve(event, &mut bench.queues).unwrap();
        assert_eq!(driver.used(), []);
        bench.device.stop();
        assert_eq!(read_all(&bench.output), b"0123456789abcdefghij");
        assert!(!bench.output.is_waited_for());
    }

    #[test]
    fn who_prefers_loss_keeps_the_newest_bytes() {
        let mut bench = bench();
        let mut driver = Driver::of_queue(&bench.ram, TRANSMIT);
        driver.put(DATA, *b"0123456789abcdefghij");
        driver.request(&[(DATA, 20, false)]);
        assert_eq!(driver.serve(&mut bench.device, &mut bench.queues), [(0, 0)]);
        assert_eq!(read_all(&bench.output), b"456789abcdefghij");
        assert_eq!(bench.output.dropped(), 4);
    }

    #[test]
    fn input_waits_for_buffers_and_the_sender_for_room() {
        let mut bench = bench();
        let mut driver = Driver::of_queue(&bench.ram, RECEIVE);
        let port = bench.device.port();
        assert_eq!(port.receive(&[7; 5000]), WAITING);
        let event = Event::Source(0);
        bench.device.serve(event, &mut bench.queues).unwrap();
        assert_eq!(driver.used(), []);
        assert!(bench.room.read().is_err(), "no room yet");
        driver.request(&[(DATA, 100, true)]);
        let used = driver.serve(&mut bench.device, &mut bench.queues);
        assert_eq!(used, [(0, 100)]);
        assert_eq!(driver.get::<u8>(DATA + 99), 7);
        bench.room.read().unwrap();
        assert_eq!(port.receive(&[8; 5000]), 100);
        // A chain without room takes nothing and loses nothing, and the next one has its turn.
        driver.descriptor(1, DATA, 100, crate::virtio::testing::WRITE, 0);
        driver.offer(1);
        driver.request(&[(DATA, 100, false)]);
        driver.offer(1);
        let used = driver.serve(&mut bench.device, &mut bench.queues);
        assert_eq!(used, [(1, 100), (0, 0), (1, 100)]);
        let waiting = lock(&bench.device.shared.input).bytes.len();
        assert_eq!(waiting, WAITING - 200);
        let read = bench.device.monitor().read();
        let received = &read.operations["receive"];
        assert_eq!((received.requests, received.bytes), (4, 300));
        // Before the first buffer, and after each of the last ones.
        assert_eq!(read.stalls, 3);
        for _ in 0..5 {
            bench.device.serve(event, &mut bench.queues).unwrap();
        }
        assert_eq!(bench.device.monitor().read().stalls, 3, "still the same");
    }

    #[test]
    fn the_size_follows_the_terminal() {
        let mut bench = bench();
        bench.device.port().resize(132, 50);
        let config = bench.device.config();
        let mut size = [0; 4];
        config.read(0, &mut size);
        assert_eq!((size, config.generation()), ([132, 0, 50, 0], 1));
        let serve = |bench: &mut Bench| {
            bench
                .device
                .serve(Event::Source(0), &mut bench.queues)
                .unwrap();
            bench.queues.interrupt_reasons()
        };
        assert_eq!(serve(&mut bench), 2, "a configuration change");
    }
}
