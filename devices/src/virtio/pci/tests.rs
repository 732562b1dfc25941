use std::sync::mpsc;

use proptest::prelude::*;

use super::choice::NO_VECTOR;
use super::common::*;
use super::layout::*;
use super::*;
use crate::Message;
use crate::virtio::testing::{DATA, Driver, FEATURE, SIZE, Sink, ram, wait_for};
use std::os::fd::AsRawFd;

mod lost;
mod saved;

const BASE: u32 = 0xc000_0000;
const UP_TO_DRIVER: u8 = 3;
const UP_TO_FEATURES: u8 = 11;
const UP_TO_RUNNING: u8 = 15;
const NEEDS_RESET: u8 = 0x40;
/// Messages of the test device: two queues and the configuration.
const MESSAGES: u64 = 3;

/// What the host is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    Set(u16, Message),
    Commit,
    /// A doorbell's address.
    Connect(u64, bool),
}

#[derive(Default)]
struct Events([Option<EventFd>; 3]);

struct Sender {
    calls: mpsc::Sender<Call>,
    events: Arc<Mutex<Events>>,
}

impl MsiSink for Sender {
    fn set(&mut self, vector: u16, event: &EventFd, message: Message) -> io::Result<()> {
        lock(&self.events).0[usize::from(vector)] = Some(event.try_clone()?);
        let call = Call::Set(vector, message);
        self.calls.send(call).map_err(io::Error::other)
    }

    fn commit(&mut self) -> io::Result<()> {
        self.calls.send(Call::Commit).map_err(io::Error::other)
    }
}

struct Bench {
    device: VirtioPci,
    driver: Driver,
    calls: mpsc::Receiver<Call>,
    events: Arc<Mutex<Events>>,
}

fn bench() -> Bench {
    let ram = ram();
    let (sender, calls) = mpsc::channel();
    let events = Arc::<Mutex<Events>>::default();
    let sink = Sender {
        calls: sender.clone(),
        events: Arc::clone(&events),
    };
    let connect: ConnectAt = Box::new(move |address, _, on| {
        let call = Call::Connect(address, on);
        sender.send(call).map_err(io::Error::other)
    });
    let device = Box::new(Sink::default());
    let device = VirtioPci::new(
        device,
        ram.clone(),
        BASE,
        Box::new(sink),
        connect,
        &Threads::default(),
    );
    Bench {
        device: device.unwrap(),
        driver: Driver::new(&ram),
        calls,
        events,
    }
}

fn message(vector: u64) -> Message {
    Message {
        address: 0xfee0_1000,
        data: 0x40 + u32::try_from(vector).unwrap(),
    }
}

impl Bench {
    fn bar<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xaa; N];
        self.device.read_bar(offset, &mut data);
        data
    }

    fn config<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut data = [0xaa; N];
        self.device.read_config(offset, &mut data);
        data
    }

    /// Offsets of all capabilities of this id, as a driver finds them.
    fn capabilities(&self, id: u8) -> Vec<usize> {
        let mut found = Vec::new();
        let [mut next] = self.config(0x34);
        while next != 0 {
            let [this, link] = self.config(next.into());
            if this == id {
                found.push(next.into());
            }
            next = link;
        }
        found
    }

    fn msix_control(&self, control: u16) {
        let offset = self.capabilities(MSI_X)[0] + MSIX_CONTROL;
        self.device.write_config(offset, &control.to_le_bytes());
    }

    fn status(&self) -> u8 {
        let [status] = self.bar(DEVICE_STATUS);
        status
    }

    fn set_status(&self, status: u8) {
        self.device.write_bar(DEVICE_STATUS, &[status]);
    }

    fn put(&self, offset: u64, value: u16) {
        self.device.write_bar(offset, &value.to_le_bytes());
    }

    fn get(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.bar(offset))
    }

    fn negotiate(&self) {
        self.set_status(UP_TO_DRIVER);
        self.device.write_bar(DRIVER_FEATURE_SELECT, &[1, 0, 0, 0]);
        self.device.write_bar(DRIVER_FEATURE, &[1, 0, 0, 0]);
        self.set_status(UP_TO_FEATURES);
        assert_eq!(self.status(), UP_TO_FEATURES);
    }

    /// Fills in and unmasks all messages, queue 0 with the first and the configuration with the
    /// third.
    fn choose_messages(&self) {
        self.msix_control(ENABLE);
        for vector in 0..MESSAGES {
            let message = message(vector);
            let entry = TABLE + TABLE_ENTRY * vector;
            let address = message.address.to_le_bytes();
            self.device.write_bar(entry, &address);
            self.device
                .write_bar(entry + 8, &message.data.to_le_bytes());
            self.device.write_bar(entry + 12, &[0; 4]);
        }
        self.put(QUEUE_SELECT, 0);
        self.put(QUEUE_VECTOR, 0);
        self.put(CONFIG_VECTOR, 2);
        assert_eq!((self.get(QUEUE_VECTOR), self.get(CONFIG_VECTOR)), (0, 2));
    }

    fn set_up_queue(&self, used: u64) {
        self.put(QUEUE_SELECT, 0);
        self.put(QUEUE_SIZE, SIZE);
        for (field, address) in [
            (QUEUE_DESC, 0x1000u64),
            (QUEUE_DRIVER, 0x2000),
            (QUEUE_DEVICE, used),
        ] {
            let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
            self.device.write_bar(field, &[a, b, c, d]);
            self.device.write_bar(field + 4, &[e, f, g, h]);
            assert_eq!(u64::from_le_bytes(self.bar(field)), address);
        }
        self.put(QUEUE_ENABLE, 1);
        assert_eq!(self.get(QUEUE_ENABLE), 1);
    }

    fn start(&mut self) {
        self.negotiate();
        self.set_up_queue(0x3000);
        // After a reset the driver starts with empty rings.
        self.driver.put(0x2000, [0u16; 2]);
        self.driver.put(0x3000, [0u16; 2]);
        self.driver = Driver::new(&self.driver.ram);
        self.set_status(UP_TO_RUNNING);
        assert_eq!(self.status(), UP_TO_RUNNING);
    }

    fn request(&mut self) {
        self.driver.request(&[(DATA, 5, false), (DATA, 7, true)]);
        let place = u64::from(self.get(0x1e));
        self.put(NOTIFY + u64::from(NOTIFY_STEP) * place, 0);
    }

    /// Waits for a message.
    fn wait(&self, vector: usize) {
        let event = lock(&self.events).0[vector].as_ref().unwrap().try_clone();
        let event = event.unwrap();
        wait_for(&[event.as_raw_fd()]);
        event.read().unwrap();
    }

    fn is_quiet(&self, vector: usize) -> bool {
        let events = lock(&self.events);
        events.0[vector]
            .as_ref()
            .is_none_or(|event| event.read().is_err())
    }

    fn works(&mut self) {
        self.request();
        self.wait(0);
        assert_eq!(self.driver.used(), [(0, 7)]);
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.try_iter().collect()
    }
}

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

#[test]
fn a_driver_finds_the_parts_of_the_device() {
    let bench = bench();
    assert_eq!(bench.config(0), [0xf4, 0x1a, 0x6a, 0x10], "type 42");
    let parts: Vec<[u8; 16]> = bench
        .capabilities(VENDOR_SPECIFIC)
        .iter()
        .map(|offset| bench.config(*offset))
        .collect();
    let summary: Vec<_> = parts
        .iter()
        .map(|part| {
            let word = |at: usize| u32::from_le_bytes(part[at..at + 4].try_into().unwrap());
            (part[2], part[3], part[4], word(8), word(12))
        })
        .collect();
    assert_eq!(
        summary,
        [
            (16, 1, 0, 0x0000, 56),
            (20, 2, 0, 0x3000, 8),
            (16, 3, 0, 0x1000, 1),
            (16, 4, 0, 0x2000, 0x1000),
            (20, 5, 0, 0, 0),
        ]
    );
    let msix = bench.capabilities(MSI_X)[0];
    assert_eq!(bench.config(msix + 2), [2, 0, 0, 0x40, 0, 0, 0, 0x50, 0, 0]);
    // Two queues, the features of the device, its configuration.
    assert_eq!(bench.get(0x12), 2);
    let features = u32::try_from(FEATURE | 1 << 28 | 1 << 29).unwrap();
    assert_eq!(bench.bar(4), features.to_le_bytes());
    assert_eq!(&bench.bar::<8>(DEVICE), b"config\0\0");
    bench.put(QUEUE_SELECT, 1);
    assert_eq!((bench.get(QUEUE_SIZE), bench.get(0x1e)), (SIZE, 1));
}

#[test]
fn a_driver_uses_the_device_with_messages() {
    let mut bench = bench();
    bench.choose_messages();
    bench.start();
    bench.works();
    bench.works();
    // All messages went to the host at once, before the doorbell was there.
    let mut expected: Vec<_> = (0..MESSAGES)
        .map(|vector| Call::Set(u16::try_from(vector).unwrap(), message(vector)))
        .collect();
    let doorbell = u64::from(BASE) + NOTIFY;
    expected.extend([Call::Commit, Call::Connect(doorbell, true)]);
    assert_eq!(bench.calls(), expected);
    assert!(bench.is_quiet(1) && bench.is_quiet(2));
    // Again after a reset, with other messages.
    bench.set_status(0);
    assert_eq!(bench.get(QUEUE_VECTOR), NO_VECTOR);
    assert_eq!(bench.calls(), [Call::Connect(doorbell, false)]);
    bench.choose_messages();
    bench.start();
    bench.works();
    assert_eq!(bench.calls(), [Call::Connect(doorbell, true)], "known");
}

#[test]
fn a_driver_without_messages_polls_and_reads_the_status() {
    let mut bench = bench();
    bench.start();
    bench.request();
    while bench.driver.used().is_empty() {
        std::thread::yield_now();
    }
    // The interrupt status follows the used ring, and reading acknowledges it.
    while bench.bar(ISR) != [1] {
        std::thread::yield_now();
    }
    assert_eq!(bench.bar(ISR), [0]);
    assert!((0..3).all(|vector| bench.is_quiet(vector)));
}

#[test]
fn what_is_raised_while_masked_comes_when_it_is_unmasked() {
    let mut bench = bench();
    bench.choose_messages();
    bench.start();
    bench.calls();
    let control = TABLE + 12;
    bench.device.write_bar(control, &[1, 0, 0, 0]);
    bench.request();
    while bench.bar(PENDING) != [1] {
        std::thread::yield_now();
    }
    assert!(bench.is_quiet(0));
    // Another target, as a driver moves an interrupt to another vCPU.
    bench.device.write_bar(TABLE, &0xfee0_2000u32.to_le_bytes());
    assert_eq!(bench.calls(), [], "still masked");
    bench.device.write_bar(control, &[0; 4]);
    bench.wait(0);
    assert_eq!(bench.bar(PENDING), [0]);
    let moved = Message {
        address: 0xfee0_2000,
        ..message(0)
    };
    assert_eq!(bench.calls(), [Call::Set(0, moved), Call::Commit]);
    // The whole function, too.
    bench.driver.used();
    bench.msix_control(ENABLE | FUNCTION_MASK);
    bench.request();
    while bench.bar(PENDING) != [1] {
        std::thread::yield_now();
    }
    bench.msix_control(ENABLE);
    bench.wait(0);
}

#[test]
fn doorbells_follow_the_bar() {
    let mut bench = bench();
    bench.choose_messages();
    bench.start();
    bench.calls();
    assert_eq!(bench.device.bar(), Some((BASE.into(), 0x8000)));
    bench.device.write_config(0x04, &[0, 0]);
    assert_eq!(bench.device.bar(), None);
    let old = u64::from(BASE) + NOTIFY;
    assert_eq!(bench.calls(), [Call::Connect(old, false)]);
    bench
        .device
        .write_config(0x10, &0xd000_0000u32.to_le_bytes());
    assert_eq!(bench.calls(), []);
    bench.device.write_config(0x04, &[6, 0]);
    assert_eq!(bench.calls(), [Call::Connect(0xd000_3000, true)]);
    bench.works();
}

#[test]
fn r7_queues_features_and_messages_are_fixed_while_the_device_runs() {
    let mut bench = bench();
    bench.choose_messages();
    bench.start();
    let before: [u8; COMMON_LEN] = bench.bar(0);
    for field in [QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE, CONFIG_VECTOR] {
        bench.put(field, 1);
        bench.put(field, 0);
    }
    for field in [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE] {
        bench.device.write_bar(field, &[0xff; 8]);
        bench.device.write_bar(field + 4, &[0xff; 4]);
    }
    bench.device.write_bar(DRIVER_FEATURE, &[0xff; 4]);
    assert_eq!(bench.bar(0), before);
    bench.works();
}

#[test]
fn r10_queues_and_messages_that_there_are_not() {
    let bench = bench();
    bench.negotiate();
    for queue in [2, 31, 32, 0xffff] {
        bench.put(QUEUE_SELECT, queue);
        assert_eq!((bench.get(QUEUE_SIZE), bench.get(QUEUE_ENABLE)), (0, 0));
        bench.put(QUEUE_VECTOR, 0);
        assert_eq!(bench.get(QUEUE_VECTOR), NO_VECTOR);
        bench.put(QUEUE_ENABLE, 1);
        assert_eq!(bench.get(QUEUE_ENABLE), 0);
    }
    bench.put(QUEUE_SELECT, 0);
    for vector in [3, 64, 0xfffe] {
        bench.put(QUEUE_VECTOR, vector);
        bench.put(CONFIG_VECTOR, vector);
        assert_eq!(bench.get(QUEUE_VECTOR), NO_VECTOR);
        assert_eq!(bench.get(CONFIG_VECTOR), NO_VECTOR);
    }
    for queue in [2u64, 1000] {
        bench.put(NOTIFY + 4 * queue, 0);
    }
}

#[test]
fn r23_rings_outside_ram_need_a_reset_which_the_driver_is_told() {
    let mut bench = bench();
    bench.choose_messages();
    bench.negotiate();
    bench.set_up_queue(0x7_0000_0000);
    bench.set_status(UP_TO_RUNNING);
    assert_eq!(bench.status() & 0x40, 0x40, "DEVICE_NEEDS_RESET");
    bench.wait(2);
    bench.set_status(0);
    bench.choose_messages();
    bench.start();
    bench.works();
}

#[test]
fn the_bar_can_be_reached_through_the_configuration_space() {
    let bench = bench();
    let access = bench.capabilities(VENDOR_SPECIFIC)[4];
    let aim = |offset: u32, len: u32| {
        bench
            .device
            .write_config(access + ACCESS_OFFSET, &offset.to_le_bytes());
        bench
            .device
            .write_config(access + ACCESS_LEN, &len.to_le_bytes());
    };
    let data = access + ACCESS_DATA;
    aim(0x2000, 4);
    assert_eq!(&bench.config::<4>(data), b"conf");
    aim(0x14, 1);
    bench.device.write_config(data, &[UP_TO_DRIVER, 0, 0, 0]);
    assert_eq!(bench.status(), UP_TO_DRIVER);
    // Not with lengths and places that there are not.
    for (offset, len) in [(0x14, 0), (0x14, 3), (0x15, 2), (0x8000, 1), (u32::MAX, 4)] {
        aim(offset, len);
        bench.device.write_config(data, &[0; 4]);
        bench.config::<4>(data);
    }
    assert_eq!(bench.status(), UP_TO_DRIVER);
    bench.device.write_config(access + ACCESS_BAR, &[1]);
    aim(0x14, 1);
    bench.device.write_config(data, &[0; 4]);
    assert_eq!(bench.status(), UP_TO_DRIVER);
}

#[test]
fn r25_accesses_of_any_width_at_any_place_are_legal() {
    for running in [false, true] {
        let mut bench = bench();
        if running {
            bench.choose_messages();
            bench.start();
        }
        for width in 0..=8 {
            for offset in 0..u64::from(BAR) {
                // Every byte of the registers, and the rest here and there.
                if offset % PAGE < 0x80 || offset % 61 == 0 {
                    let mut data = vec![0; width];
                    bench.device.read_bar(offset, &mut data);
                    bench.device.write_bar(offset, &data);
                }
            }
            for offset in 0..0x1000 {
                let mut data = vec![0; width];
                bench.device.read_config(offset, &mut data);
                bench.device.write_config(offset, &data);
            }
        }
    }
}

proptest! {
    /// Whatever a driver writes before, to a device that runs or not, a reset makes it usable.
    #[test]
    fn r24_after_a_reset_the_device_works_again(
        running in any::<bool>(),
        writes in proptest::collection::vec(
            (any::<bool>(), 0u64..0x6000, proptest::collection::vec(any::<u8>(), 1..9)),
            0..60,
        ),
    ) {
        let mut bench = bench();
        if running {
            bench.choose_messages();
            bench.start();
            bench.request();
        }
        for (to_bar, offset, mut data) in writes {
            if to_bar {
                // Mostly where something is.
                let offset = offset / PAGE * PAGE + offset % 0x40;
                bench.device.write_bar(offset, &data);
                bench.device.read_bar(offset, &mut data);
            } else {
                let offset = usize::try_from(offset % 0x100).unwrap();
                bench.device.write_config(offset, &data);
                bench.device.read_config(offset, &mut data);
            }
        }
        bench.set_status(0);
        // What was told before the reset counts no more.
        bench.is_quiet(0);
        bench.device.write_config(0x10, &BASE.to_le_bytes());
        bench.device.write_config(0x04, &[6, 0]);
        bench.choose_messages();
        bench.start();
        bench.works();
    }
}
