//! Statistics of the guest, by drivers good and bad.

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::*;
use crate::bus::BusDevice;
use crate::virtio::testing::{self, SIZE, wait};
use crate::virtio::{DeviceState, VirtioMmio, VirtioTransport};
use crate::{GuestStatistics, Report, Threads};

/// Free, total and available memory, with something unknown before, between and behind.
const GIVEN: [(u16, u64); 6] = [
    (16, 1),
    (4, 100 << 20),
    (5, 256 << 20),
    (u16::MAX, 2),
    (6, 150 << 20),
    (0x0400, 3),
];

fn bytes(entries: &[(u16, u64)]) -> Vec<u8> {
    let entry = |(tag, value): &(u16, u64)| {
        let bytes = [&tag.to_le_bytes()[..], &value.to_le_bytes()];
        bytes.concat()
    };
    entries.iter().flat_map(entry).collect()
}

/// The buffer of a driver at descriptor 0, with what it says.
fn offer(driver: &mut Driver, bytes: &[u8]) {
    let guest = GuestAddress(DATA);
    driver.ram.write_slice(bytes, guest).unwrap();
    let len = u32::try_from(bytes.len()).unwrap();
    driver.request(&[(DATA, len, false)]);
}

impl Bench {
    fn asked(&mut self) -> BalloonStatistics {
        let queues = Some(&mut self.queues);
        told(self.device.query(Query::Statistics, queues))
    }

    fn guest(&mut self) -> GuestStatistics {
        self.asked().guest.unwrap()
    }
}

fn told(report: Result<Report, ChangeError>) -> BalloonStatistics {
    match report {
        Ok(Report::Statistics(statistics)) => *statistics,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_question_is_answered_at_once_and_asks_the_guest_for_the_next_answer() {
    let mut bench = bench();
    let mut driver = Driver::of_queue(&bench.ram, STATISTICS);
    let nothing = bench.asked();
    assert_eq!((nothing.guest, nothing.refreshing), (None, true));
    // At its start a driver offers its first buffer, which the device keeps.
    offer(&mut driver, &bytes(&GIVEN));
    bench.serve(STATISTICS).unwrap();
    assert_eq!(driver.used(), []);
    bench.device.config().write(4, &[2, 0, 0, 0]);
    let statistics = bench.asked();
    assert_eq!(statistics.asked_bytes, RAM as u64 / 2);
    assert_eq!(statistics.given_bytes, 2 << PAGE_SHIFT);
    assert!(statistics.supported && statistics.refreshing);
    let guest = statistics.guest.unwrap();
    let expected = GuestStatistics {
        age_ms: guest.age_ms,
        free_bytes: Some(100 << 20),
        total_bytes: Some(256 << 20),
        available_bytes: Some(150 << 20),
        ..GuestStatistics::default()
    };
    assert_eq!(guest, expected);
    // The driver has its buffer back, once, and is told.
    assert_eq!(driver.used(), [(0, 0)]);
    assert_eq!(bench.queues.interrupt_reasons(), 1);
    assert_eq!(bench.guest().free_bytes, Some(100 << 20));
    assert_eq!(driver.used(), []);
    offer(&mut driver, &bytes(&[(4, 7)]));
    bench.serve(STATISTICS).unwrap();
    let guest = bench.guest();
    assert_eq!((guest.free_bytes, guest.total_bytes), (Some(7), None));
    assert_eq!(driver.used(), [(0, 0)]);
}

#[test]
fn every_tag_has_its_place() {
    let mut bench = bench();
    let mut driver = Driver::of_queue(&bench.ram, STATISTICS);
    let all: Vec<_> = (0..16).map(|tag| (tag, 100 + u64::from(tag))).collect();
    offer(&mut driver, &bytes(&all));
    bench.serve(STATISTICS).unwrap();
    let guest = bench.guest();
    // As include/uapi/linux/virtio_balloon.h of Linux 6.12 has them.
    let by_tag = [
        guest.swap_in_bytes,
        guest.swap_out_bytes,
        guest.major_faults,
        guest.minor_faults,
        guest.free_bytes,
        guest.total_bytes,
        guest.available_bytes,
        guest.cache_bytes,
        guest.hugetlb_allocations,
        guest.hugetlb_failures,
        guest.oom_kills,
        guest.allocation_stalls,
        guest.async_scanned_pages,
        guest.direct_scanned_pages,
        guest.async_reclaimed_pages,
        guest.direct_reclaimed_pages,
    ];
    assert_eq!(by_tag.map(Option::unwrap).to_vec(), {
        (100..116).collect::<Vec<u64>>()
    });
}

#[test]
fn buffers_of_any_size_and_shape_are_read_as_far_as_they_make_sense() {
    let mut bench = bench();
    let mut driver = Driver::of_queue(&bench.ram, STATISTICS);
    offer(&mut driver, &bytes(&GIVEN));
    bench.serve(STATISTICS).unwrap();
    // What says nothing changes nothing: empty, too short, unknown.
    for nothing in [&[][..], &[4, 0, 1, 1, 1, 1, 1, 1, 1], &bytes(&[(99, 1)])] {
        bench.asked();
        offer(&mut driver, nothing);
        bench.serve(STATISTICS).unwrap();
        assert_eq!(bench.guest().free_bytes, Some(100 << 20), "{nothing:?}");
    }
    // A tag twice, and a part of an entry at the end.
    let twice = [&bytes(&[(4, 1), (4, 2)])[..], &[4, 0, 9]].concat();
    offer(&mut driver, &twice);
    bench.serve(STATISTICS).unwrap();
    assert_eq!(bench.guest().free_bytes, Some(2));
    // Half a million bytes, of which the first count; cut anywhere; and with room to write.
    let first = [&bytes(&[(4, 3)])[..], &[0xff; 0x1000]].concat();
    let guest = GuestAddress(DATA);
    driver.ram.write_slice(&first, guest).unwrap();
    driver.request(&[
        (DATA, 3, false),
        (DATA + 3, 0, false),
        (DATA + 3, 0x8_0000, false),
        (VICTIM, 64, true),
    ]);
    bench.serve(STATISTICS).unwrap();
    assert_eq!(bench.guest().free_bytes, Some(3));
    assert_eq!(bench.kept(), [true; 8]);
    // Outside RAM the driver has broken a rule.
    driver.request(&[(1 << 40, 10, false)]);
    bench.serve(STATISTICS).unwrap_err();
    assert_eq!(bench.guest().free_bytes, Some(3));
}

/// A driver has one buffer. One that offers more, or the same again and again, has all but the last back.
#[test]
fn of_many_buffers_the_last_one_is_kept() {
    let mut bench = bench();
    let mut driver = Driver::of_queue(&bench.ram, STATISTICS);
    for head in 0..SIZE {
        driver.put(DATA, [4u16, head, 0, 0, 0]);
        driver.descriptor(head, DATA, 10, 0, 0);
        driver.offer(head);
    }
    while bench.serve(STATISTICS).unwrap() {}
    let back: Vec<_> = (0..u32::from(SIZE) - 1).map(|head| (head, 0)).collect();
    assert_eq!(driver.used(), back);
    for _ in 0..100 {
        driver.offer(3);
        bench.serve(STATISTICS).unwrap();
        assert_eq!(driver.used().len(), 1);
    }
    bench.asked();
    assert_eq!(driver.used(), [(3, 0)]);
}

#[test]
fn an_interval_asks_the_guest_again_and_again() {
    let config = BalloonConfig {
        stats_interval: 1,
        ..config()
    };
    let mut bench = bench_with(&config, ALL);
    assert_eq!(bench.device.interval, Some(Duration::from_secs(1)));
    // Nobody waits for that here.
    bench.device.interval = Some(Duration::from_millis(1));
    bench.device.start(ALL);
    let mut driver = Driver::of_queue(&bench.ram, STATISTICS);
    for _ in 0..2 {
        offer(&mut driver, &bytes(&GIVEN));
        bench.serve(STATISTICS).unwrap();
        assert_eq!(driver.used(), []);
        wait(&bench.device);
        bench
            .device
            .serve(Event::Source(0), &mut bench.queues)
            .unwrap();
        assert_eq!(driver.used(), [(0, 0)]);
    }
    // A guest that has not answered is not asked again.
    wait(&bench.device);
    bench
        .device
        .serve(Event::Source(0), &mut bench.queues)
        .unwrap();
    assert_eq!(driver.used(), []);
}

#[test]
fn an_interval_is_changed_while_the_guest_runs() {
    let mut bench = bench_with(&config(), ALL);
    let mut driver = Driver::of_queue(&bench.ram, STATISTICS);
    offer(&mut driver, &bytes(&GIVEN));
    bench.serve(STATISTICS).unwrap();
    for (seconds, interval) in [(7, Some(Duration::from_secs(7))), (0, None)] {
        let change = Change::StatsInterval(seconds);
        bench.device.change(&change, Some(&bench.queues)).unwrap();
        assert_eq!(bench.device.interval, interval);
        wait(&bench.device);
        bench
            .device
            .serve(Event::Source(0), &mut bench.queues)
            .unwrap();
        // The first one asks at once, the other one never.
        let asked: &[(u32, u32)] = if seconds > 0 { &[(0, 0)] } else { &[] };
        assert_eq!(driver.used(), asked);
        offer(&mut driver, &bytes(&GIVEN));
        bench.serve(STATISTICS).unwrap();
    }
}

#[test]
fn a_queue_that_the_driver_takes_back_has_its_buffer() {
    let mut bench = bench();
    let mut driver = Driver::of_queue(&bench.ram, STATISTICS);
    offer(&mut driver, &bytes(&GIVEN));
    bench.serve(STATISTICS).unwrap();
    bench.device.close(REPORTS, &mut bench.queues).unwrap();
    assert_eq!(driver.used(), []);
    bench.device.close(STATISTICS, &mut bench.queues).unwrap();
    assert_eq!(driver.used(), [(0, 0)]);
}

/// A balloon behind its transport, with the least that a driver does.
struct Machine {
    transport: VirtioMmio,
    driver: Driver,
    line: EventFd,
}

const STATUS: u64 = 0x70;

impl Machine {
    fn new() -> Self {
        let ram = ram();
        let line = EventFd::new(EFD_CLOEXEC).unwrap();
        let guest_line = line.try_clone().unwrap();
        let connect = Box::new(|_: u16, _: &EventFd, _| Ok(()));
        let device = Box::new(Balloon::new(&config(), RAM as u64).unwrap());
        Self {
            transport: VirtioMmio::new(
                device,
                ram.clone(),
                guest_line,
                connect,
                &Threads::default(),
            )
            .unwrap(),
            driver: Driver::of_queue(&ram, STATISTICS),
            line,
        }
    }

    fn write(&self, register: u64, value: u32) {
        let _ = self.transport.write(register, &value.to_le_bytes());
    }

    /// A driver takes these features, sets the queue of statistics up, offers its buffer and is ready.
    fn start(&mut self, features: u32) {
        let queue = u32::try_from(STATISTICS).unwrap();
        let base = queue * QUEUE;
        for ring in [AVAILABLE, USED] {
            self.driver.put(u64::from(base) + ring, [0u16; 2]);
        }
        self.driver = Driver::of_queue(&self.driver.ram, STATISTICS);
        offer(&mut self.driver, &bytes(&GIVEN));
        for (register, value) in [
            (STATUS, 1),
            (STATUS, 3),
            (0x24, 0),
            (0x20, features),
            // VERSION_1, in the second half of the features.
            (0x24, 1),
            (0x20, 1),
            (STATUS, 11),
            (0x30, queue),
            (0x38, SIZE.into()),
            (0x80, 0x1000 + base),
            (0x90, 0x2000 + base),
            (0xa0, 0x3000 + base),
            (0x44, 1),
            (0x50, queue),
            (STATUS, 15),
        ] {
            self.write(register, value);
        }
        assert_eq!(self.transport.state(), DeviceState::Running);
    }

    fn ask(&self) -> BalloonStatistics {
        told(self.transport.query(Query::Statistics))
    }

    /// Asks until the first statistics are there.
    fn first(&self) -> GuestStatistics {
        let end = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(guest) = self.ask().guest {
                return guest;
            }
            assert!(std::time::Instant::now() < end, "no statistics come");
        }
    }
}

#[test]
fn statistics_are_told_in_every_stage_and_begin_anew_with_every_driver() {
    let mut machine = Machine::new();
    let none = BalloonStatistics {
        asked_bytes: RAM as u64 / 2,
        ..BalloonStatistics::default()
    };
    assert_eq!(machine.ask(), none);
    assert_eq!(
        machine.transport.query(Query::Hinting).map(drop),
        Ok(()),
        "every question has an answer"
    );
    for _ in 0..2 {
        machine.start(1 << STATS_VQ);
        assert_eq!(machine.first().free_bytes, Some(100 << 20));
        machine.line.read().unwrap();
        assert_eq!(machine.driver.used(), [(0, 0)]);
        // The driver resets with a buffer that the device holds: nothing of it is left.
        offer(&mut machine.driver, &bytes(&[(4, 5)]));
        machine.write(0x50, 2);
        while machine.ask().guest.unwrap().free_bytes != Some(5) {}
        machine.write(STATUS, 0);
        machine.driver.used();
        assert_eq!(machine.ask(), none);
        assert_eq!(machine.driver.used(), []);
    }
    // A driver that has not taken the feature.
    machine.start(0);
    assert_eq!(machine.ask(), none);
}

#[test]
fn a_paused_guest_is_not_asked_and_its_buffer_stays_with_the_device() {
    let mut machine = Machine::new();
    machine.start(1 << STATS_VQ);
    machine.first();
    machine.line.read().unwrap();
    assert_eq!(machine.driver.used(), [(0, 0)]);
    offer(&mut machine.driver, &bytes(&[(4, 5)]));
    machine.write(0x50, 2);
    // Going on after a pause, the device looks at its queues.
    machine.transport.pause();
    machine.transport.resume();
    let held = |machine: &mut Machine| {
        machine.transport.pause();
        let statistics = machine.ask();
        assert!(statistics.supported && !statistics.refreshing);
        let guest = statistics.guest.unwrap();
        assert_eq!(machine.driver.used(), []);
        guest.free_bytes == Some(5)
    };
    while !held(&mut machine) {
        machine.transport.resume();
    }
    machine.transport.resume();
    assert!(machine.ask().refreshing);
    assert_eq!(machine.driver.used(), [(0, 0)]);
    machine.transport.pause();
    machine.write(STATUS, 0);
    assert_eq!(machine.ask().guest, None);
    let (state, lines) = testing::logged(|| machine.transport.state());
    assert_eq!((state, lines.len()), (DeviceState::Idle, 0));
}
