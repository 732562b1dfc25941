//! Hooks of an embedder's own in the path of frames.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::drivers::{on_sockets, packet};
use super::*;
use crate::Link;
use crate::lock;
use crate::virtio::{FRAME_START, FrameHook};

/// Where the driver's frames are, and its buffers.
const SENT: u64 = DATA + 0x8000;
const BUFFER_LEN: u32 = 1600;

#[derive(Debug, Default)]
struct State {
    shown: Vec<Vec<u8>>,
    taken: Vec<Vec<u8>>,
    to_give: VecDeque<Vec<u8>>,
    /// Gives this one for ever.
    endless: Option<Vec<u8>>,
    rooms: Vec<usize>,
    resets: usize,
}

/// Takes frames that are for nobody but it.
#[derive(Debug)]
struct Hook {
    state: Arc<Mutex<State>>,
    wake: EventFd,
    /// The guest, which changes a frame when the hook has seen it.
    guest: GuestRam,
}

const OURS: u8 = 0x77;

impl FrameHook for Hook {
    fn wants(&mut self, start: &[u8]) -> bool {
        let mut state = lock(&self.state);
        state.shown.push(start.to_vec());
        // The guest is quick.
        let other = [0xee; HEADER + FRAME_START];
        self.guest.write_slice(&other, GuestAddress(SENT)).unwrap();
        start.get(14) == Some(&OURS)
    }

    fn take(&mut self, frame: &[u8]) {
        lock(&self.state).taken.push(frame.to_vec());
    }

    fn give(&mut self, room: &mut [u8]) -> usize {
        let mut state = lock(&self.state);
        state.rooms.push(room.len());
        let next = state.to_give.pop_front().or(state.endless.clone());
        let frame = next.unwrap_or_default();
        room[..frame.len()].copy_from_slice(&frame);
        frame.len()
    }

    fn wakes(&self) -> Option<RawFd> {
        Some(self.wake.as_raw_fd())
    }

    fn reset(&mut self) {
        lock(&self.state).resets += 1;
    }
}

struct Bench {
    device: Net,
    host: std::os::unix::net::UnixDatagram,
    queues: Queues,
    ram: GuestRam,
    state: Arc<Mutex<State>>,
}

fn bench() -> Bench {
    let (mut device, mut hosts) = on_sockets(1);
    let ram = ram();
    let state = Arc::<Mutex<State>>::default();
    let hook = Hook {
        state: Arc::clone(&state),
        wake: EventFd::new(EFD_NONBLOCK).unwrap(),
        guest: ram.clone(),
    };
    device.hook(Box::new(hook)).unwrap();
    device.start(0);
    Bench {
        device,
        host: hosts.pop().unwrap(),
        queues: queues(&ram, 3),
        ram,
        state,
    }
}

impl Bench {
    /// The driver sends a frame in two pieces.
    fn send(&mut self, driver: &mut Driver, frame: &[u8]) {
        let whole = [&[0; HEADER][..], frame].concat();
        self.ram.write_slice(&whole, GuestAddress(SENT)).unwrap();
        let len = u32::try_from(whole.len()).unwrap();
        driver.request(&[(SENT, 20, false), (SENT + 20, len - 20, false)]);
        let used = driver.serve(&mut self.device, &mut self.queues);
        assert_eq!(used, [(0, 0)]);
    }

    /// What has come to a buffer of the driver.
    fn received(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
        bytes
    }
}

fn of(fill: u8, len: usize) -> Vec<u8> {
    let mut frame = frame(fill, len);
    frame[14] = fill;
    frame
}

#[test]
fn a_hook_takes_its_frames_and_the_others_pass_as_it_has_seen_them() {
    let mut bench = bench();
    let mut driver = Driver::of_queue(&bench.ram, TRANSMIT);
    for len in [20, FRAME_START, 1000] {
        bench.send(&mut driver, &of(OURS, len));
        bench.send(&mut driver, &of(0x11, len));
        let mut received = vec![0; 2000];
        let got = bench.host.recv(&mut received).unwrap();
        // Whatever the guest has written in their place meanwhile.
        assert_eq!(received[..got], [&[0; HEADER][..], &of(0x11, len)].concat());
        let mut state = lock(&bench.state);
        let taken = state.taken.pop().unwrap();
        assert_eq!(taken, of(OURS, len));
        let shown = &state.shown.pop().unwrap();
        assert_eq!(shown, &of(0x11, len)[..len.min(FRAME_START)]);
        assert!(state.taken.is_empty());
    }
    let counted = bench.device.monitor().read();
    let sent = &counted.operations["transmit"];
    assert_eq!((sent.requests, sent.errors), (6, 0));
}

/// A frame in 1024 pieces of a byte, which one call takes with its beginning; one in which no piece is used up is dropped.
#[test]
fn a_frame_in_very_many_pieces_passes_whole_or_not_at_all() {
    let mut bench = bench();
    let mut driver = Driver::of_queue(&bench.ram, TRANSMIT);
    let table = 0x4_0000;
    for (first, passes) in [(1, true), (100, false)] {
        let whole = [&[0; HEADER][..], &of(0x11, 2000)].concat();
        bench.ram.write_slice(&whole, GuestAddress(SENT)).unwrap();
        let mut at = SENT;
        for index in 0..1024u16 {
            let len = if index == 0 { first } else { 1 };
            let flags = if index == 1023 {
                0
            } else {
                crate::virtio::testing::NEXT
            };
            driver.descriptor_at(table, index, at, len, flags, index + 1);
            at += u64::from(len);
        }
        driver.descriptor(0, table, 1024 * 16, crate::virtio::testing::INDIRECT, 0);
        driver.offer(0);
        assert_eq!(driver.serve(&mut bench.device, &mut bench.queues), [(0, 0)]);
        bench.host.set_nonblocking(true).unwrap();
        let mut received = vec![0; 4000];
        let got = bench.host.recv(&mut received).ok();
        assert_eq!(got, passes.then_some(1024), "{first}");
    }
}

#[test]
fn what_a_hook_gives_comes_when_the_driver_has_room_for_it() {
    let mut bench = bench();
    let mut driver = Driver::of_queue(&bench.ram, RECEIVE);
    lock(&bench.state).to_give.extend([of(1, 60), of(2, 1514)]);
    let hook = Event::Source(bench.device.sources().len() - 1);
    // No buffer: the frames stay where they are.
    assert!(!bench.device.serve(hook, &mut bench.queues).unwrap());
    assert_eq!(lock(&bench.state).to_give.len(), 2);
    for (fill, len) in [(1, 60), (2, 1514)] {
        driver.request(&[(DATA, 700, true), (DATA + 700, BUFFER_LEN - 700, true)]);
        let used = driver.serve(&mut bench.device, &mut bench.queues);
        assert_eq!(used, [(0, u32::try_from(HEADER + len).unwrap())]);
        let mut header = [0; HEADER];
        header[usize::try_from(frame::NUM_BUFFERS).unwrap()] = 1;
        assert_eq!(
            bench.received(HEADER + len),
            [&header[..], &of(fill, len)].concat()
        );
    }
    // It is not asked again before there is a reason.
    driver.request(&[(DATA, BUFFER_LEN, true)]);
    bench
        .device
        .serve(Event::Queue(RECEIVE), &mut bench.queues)
        .unwrap();
    let asked = lock(&bench.state).rooms.len();
    bench
        .device
        .serve(Event::Queue(RECEIVE), &mut bench.queues)
        .unwrap();
    assert_eq!(lock(&bench.state).rooms.len(), asked);
    assert!(lock(&bench.state).rooms.iter().all(|room| *room == 1514));
    lock(&bench.state).to_give.push_back(of(3, 60));
    bench.device.serve(hook, &mut bench.queues).unwrap();
    assert_eq!(driver.used(), [(0, 72)]);
}

#[test]
fn a_hook_and_the_network_leave_each_other_a_turn() {
    let mut bench = bench();
    let mut driver = Driver::of_queue(&bench.ram, RECEIVE);
    lock(&bench.state).endless = Some(of(1, 60));
    bench.host.send(&packet(9, 200)).unwrap();
    let hook = Event::Source(bench.device.sources().len() - 1);
    let next = |bench: &mut Bench, driver: &mut Driver| {
        driver.request(&[(DATA, BUFFER_LEN, true)]);
        let more = bench.device.serve(hook, &mut bench.queues).unwrap();
        assert!(!more, "a driver without buffers is waited for");
        let used = driver.used();
        assert_eq!(used.len(), 1);
        used[0].1 as usize - HEADER
    };
    let lens = [(); 4].map(|()| next(&mut bench, &mut driver));
    assert_eq!(
        lens.iter().filter(|len| **len == 200).count(),
        1,
        "{lens:?}"
    );
    // And the other way round.
    lock(&bench.state).endless = None;
    lock(&bench.state).to_give.push_back(of(1, 60));
    for _ in 0..8 {
        bench.host.send(&packet(9, 200)).unwrap();
    }
    let lens = [(); 4].map(|()| next(&mut bench, &mut driver));
    assert_eq!(lens.iter().filter(|len| **len == 60).count(), 1, "{lens:?}");
}

#[test]
fn a_link_that_is_down_keeps_frames_of_a_hook_back() {
    let mut bench = bench();
    let mut sender = Driver::of_queue(&bench.ram, TRANSMIT);
    let mut driver = Driver::of_queue(&bench.ram, RECEIVE);
    driver.request(&[(DATA, BUFFER_LEN, true)]);
    let pull = Change::Link(Link::Down);
    bench.device.change(&pull, None).unwrap();
    lock(&bench.state).to_give.push_back(of(1, 60));
    bench.send(&mut sender, &of(OURS, 100));
    assert!(lock(&bench.state).taken.is_empty() && driver.used().is_empty());
    bench.device.change(&Change::Link(Link::Up), None).unwrap();
    bench.send(&mut sender, &of(OURS, 100));
    assert_eq!(lock(&bench.state).taken.len(), 1);
    assert_eq!(driver.used(), [(0, 72)]);
    bench.device.stop();
    assert_eq!(lock(&bench.state).resets, 1);
}

#[test]
fn a_device_of_no_network_takes_no_hook() {
    let hook = Hook {
        state: Arc::default(),
        wake: EventFd::new(EFD_NONBLOCK).unwrap(),
        guest: ram(),
    };
    let mut other = crate::virtio::testing::Sink::default();
    assert!(other.hook(Box::new(hook)).is_err());
}
