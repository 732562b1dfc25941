//! Changes of devices that are there, with and without a driver.

use super::*;
use crate::bus::BusDevice;
use crate::config::{Direction, Limits, LimitsChange};
use crate::{Change, ChangeError, Hinting, Link, Query, TerminalSize, Threads};

/// A disk behind its transport, with the least that a driver does.
pub(super) struct Disk {
    pub(super) transport: VirtioMmio,
    pub(super) driver: Driver,
    pub(super) line: EventFd,
}

pub(super) const STATUS: u64 = 0x70;
const HEADER_AT: u64 = DATA;
const DATA_AT: u64 = DATA + 0x1000;

impl Disk {
    pub(super) fn new(engine: BlkEngine) -> Self {
        let Bench { device, ram, .. } = disk(engine);
        Self::behind(device, ram)
    }

    /// Any device that has a queue.
    pub(super) fn behind(device: Box<dyn VirtioDevice>, ram: GuestRam) -> Self {
        let line = EventFd::new(EFD_CLOEXEC).unwrap();
        let guest_line = line.try_clone().unwrap();
        let connect = Box::new(|_: u16, _: &EventFd, _| Ok(()));
        Self {
            transport: VirtioMmio::new(
                device,
                ram.clone(),
                guest_line,
                connect,
                &Threads::default(),
            )
            .unwrap(),
            driver: Driver::new(&ram),
            line,
        }
    }

    pub(super) fn write(&self, register: u64, value: u32) {
        let _ = self.transport.write(register, &value.to_le_bytes());
    }

    pub(super) fn start(&mut self) {
        self.driver.put(testing::AVAILABLE, [0u16; 2]);
        self.driver.put(testing::USED, [0u16; 2]);
        self.driver = Driver::new(&self.driver.ram);
        for (register, value) in [
            (STATUS, 1),
            (STATUS, 3),
            // VERSION_1, in the second half of the features.
            (0x24, 1),
            (0x20, 1),
            (STATUS, 11),
            (0x30, 0),
            (0x38, testing::SIZE.into()),
            (0x80, 0x1000),
            (0x90, 0x2000),
            (0xa0, 0x3000),
            (0x44, 1),
            (STATUS, 15),
        ] {
            self.write(register, value);
        }
        assert_eq!(self.transport.state(), DeviceState::Running);
    }

    /// Asks for a sector.
    pub(super) fn request(&mut self) {
        self.driver.put(HEADER_AT, [0u32; 4]);
        let buffers = [(HEADER_AT, 16, false), (DATA_AT, 513, true)];
        self.driver.request(&buffers);
        self.write(0x50, 0);
    }

    pub(super) fn is_answered(&mut self) {
        self.line.read().unwrap();
        assert_eq!(self.driver.used(), [(0, 513)]);
    }

    fn change(&self, change: &Change) -> Result<(), ChangeError> {
        self.transport.change(change)
    }
}

fn limits(bw: Option<u64>) -> Change {
    Change::Limits(Limits {
        bw,
        ..Limits::default()
    })
}

#[test]
fn a_disk_gets_another_file_in_every_stage() {
    let file = || -> crate::descriptor::DiskFile {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.into()
    };
    for engine in [BlkEngine::Sync, BlkEngine::Auto] {
        let mut disk = Disk::new(engine);
        disk.transport.replace_file(file(), "idle").unwrap();
        disk.start();
        disk.request();
        disk.is_answered();
        disk.transport.replace_file(file(), "running").unwrap();
        disk.line.read().unwrap();
        let mut reasons = [0; 4];
        disk.transport.read(0x60, &mut reasons);
        assert_eq!(reasons[0] & 2, 2, "the driver is told of its configuration");
        disk.write(0x64, 3);
        disk.request();
        disk.is_answered();
        disk.transport.pause();
        disk.transport.replace_file(file(), "paused").unwrap();
        disk.transport.resume();
        disk.line.read().unwrap();
        disk.request();
        disk.is_answered();
    }
}

#[test]
fn other_limits_hold_at_once_for_requests_that_wait_in_every_stage_of_a_disk() {
    for engine in [BlkEngine::Sync, BlkEngine::Auto] {
        let mut disk = Disk::new(engine);
        let size = Change::Size(TerminalSize {
            columns: 80,
            rows: 25,
        });
        // Without a driver. The first request then costs eight minutes, however slow this machine is.
        assert_eq!(disk.change(&limits(Some(1))), Ok(()));
        assert_eq!(disk.change(&size), Err(ChangeError::Foreign));
        disk.start();
        disk.request();
        disk.is_answered();
        disk.request();
        disk.transport.pause();
        assert_eq!(disk.driver.used(), [], "{engine:?}: its time has not come");
        disk.transport.resume();
        // With a driver.
        assert_eq!(disk.change(&size), Err(ChangeError::Foreign));
        assert_eq!(disk.change(&limits(None)), Ok(()));
        disk.is_answered();
        assert_eq!(disk.change(&limits(Some(1))), Ok(()));
        disk.request();
        disk.is_answered();
        // While the machine is paused, what waits goes on waiting.
        disk.request();
        disk.transport.pause();
        assert_eq!(disk.change(&size), Err(ChangeError::Foreign));
        assert_eq!(disk.change(&limits(Some(1 << 20))), Ok(()));
        assert_eq!(disk.driver.used(), []);
        disk.transport.resume();
        disk.is_answered();
        // Over a reset they stay.
        assert_eq!(disk.change(&limits(None)), Ok(()));
        assert_eq!(disk.change(&limits(Some(1))), Ok(()));
        disk.write(STATUS, 0);
        disk.start();
        disk.request();
        disk.is_answered();
        disk.request();
        disk.transport.pause();
        assert_eq!(disk.driver.used(), []);
        // Wrong values change nothing.
        let error = disk.change(&limits(Some(0))).unwrap_err();
        assert!(error.to_string().contains("1 to 1024T"), "{error}");
        assert!(disk.transport.take_device().is_some());
        assert_eq!(disk.change(&limits(None)), Err(ChangeError::Lost));
    }
}

/// VIRTIO_NET_F_STATUS.
const HAS_STATUS: u64 = 1 << 16;

fn status(bench: &Bench) -> [u8; 2] {
    let mut status = [9; 2];
    bench.device.config().read(6, &mut status);
    status
}

#[test]
fn frames_pass_while_the_cable_is_plugged_in() {
    let (mut bench, host) = net();
    bench.device.start(HAS_STATUS);
    let mut queues = queues(&bench.ram, 3);
    let mut receiver = Driver::of_queue(&bench.ram, 0);
    let mut sender = Driver::of_queue(&bench.ram, 1);
    let link = |state| Change::Link(state);
    receiver.request(&[(DATA, 2000, true)]);
    bench
        .device
        .change(&link(Link::Down), Some(&queues))
        .unwrap();
    assert_eq!((status(&bench), queues.interrupt_reasons()), ([0, 0], 2));
    // In neither direction, and whoever sends is not held up.
    host.send(&[1; 60]).unwrap();
    bench.device.serve(Event::Source(0), &mut queues).unwrap();
    assert_eq!(receiver.used(), []);
    sender.request(&[(DATA + 0x1000, 100, false)]);
    assert_eq!(sender.serve(&mut *bench.device, &mut queues), [(0, 0)]);
    assert_eq!((bench.host)(), 0);
    // What came meanwhile is lost, what comes then is not.
    bench.device.change(&link(Link::Up), Some(&queues)).unwrap();
    assert_eq!(status(&bench), [1, 0]);
    host.send(&[2; 70]).unwrap();
    bench.device.serve(Event::Source(0), &mut queues).unwrap();
    assert_eq!(receiver.used(), [(0, 70)]);
    sender.request(&[(DATA + 0x1000, 100, false)]);
    assert_eq!(sender.serve(&mut *bench.device, &mut queues), [(0, 0)]);
    assert_eq!((bench.host)(), 1);
}

#[test]
fn a_driver_that_cannot_be_told_of_its_link_keeps_it() {
    let (mut bench, _host) = net();
    bench.device.start(0);
    let queues = queues(&bench.ram, 3);
    let down = Change::Link(Link::Down);
    let error = bench.device.change(&down, Some(&queues)).unwrap_err();
    assert!(error.to_string().contains("VIRTIO_NET_F_STATUS"), "{error}");
    assert_eq!((status(&bench), queues.interrupt_reasons()), ([1, 0], 0));
    // The next one finds it as it is.
    bench.device.stop();
    bench.device.change(&down, None).unwrap();
    assert_eq!(status(&bench), [0, 0]);
}

#[test]
fn other_limits_hold_at_once_for_frames_that_wait() {
    let (mut bench, _host) = net();
    bench.device.start(0);
    bench.device.change(&limits(Some(1)), None).unwrap();
    let mut queues = queues(&bench.ram, 3);
    let mut sender = Driver::of_queue(&bench.ram, 1);
    sender.request(&[(DATA, 100, false)]);
    assert_eq!(sender.serve(&mut *bench.device, &mut queues), [(0, 0)]);
    sender.request(&[(DATA, 100, false)]);
    bench.device.serve(Event::Queue(1), &mut queues).unwrap();
    assert_eq!(sender.used(), []);
    bench.device.change(&limits(None), Some(&queues)).unwrap();
    assert_eq!(sender.serve(&mut *bench.device, &mut queues), [(0, 0)]);
    assert_eq!((bench.host)(), 2);
}

#[test]
fn limits_of_one_direction_leave_the_other_alone() {
    let (mut bench, _host) = net();
    bench.device.start(0);
    let adjust = |direction, text| {
        let change = LimitsChange::parse(Some(direction), text).unwrap();
        Change::AdjustLimits(change)
    };
    let mut queues = queues(&bench.ram, 3);
    let mut sender = Driver::of_queue(&bench.ram, 1);
    let change = adjust(Direction::Tx, "bw=1");
    bench.device.change(&change, Some(&queues)).unwrap();
    sender.request(&[(DATA, 100, false)]);
    assert_eq!(sender.serve(&mut *bench.device, &mut queues), [(0, 0)]);
    sender.request(&[(DATA, 100, false)]);
    for direction in [Direction::Rx, Direction::Tx] {
        bench.device.serve(Event::Queue(1), &mut queues).unwrap();
        assert_eq!(sender.used(), [], "{direction:?}");
        let change = adjust(direction, "bw=0");
        bench.device.change(&change, Some(&queues)).unwrap();
    }
    assert_eq!(sender.serve(&mut *bench.device, &mut queues), [(0, 0)]);
}

#[test]
fn a_disk_has_no_directions() {
    let mut bench = disk(BlkEngine::Sync);
    let change = LimitsChange::parse(Some(Direction::Rx), "bw=1").unwrap();
    let refused = bench.device.change(&Change::AdjustLimits(change), None);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("no directions"), "{refused}");
}

#[test]
fn a_balloon_gets_another_target_within_the_guests_memory() {
    let mut bench = balloon();
    let queues = queues(&bench.ram, 3);
    let pages = |bench: &Bench| {
        let mut pages = [9; 8];
        bench.device.config().read(0, &mut pages);
        pages
    };
    let change = |bench: &mut Bench, target| {
        let change = Change::Target(target);
        bench.device.change(&change, Some(&queues))
    };
    change(&mut bench, 3 << 18).unwrap();
    assert_eq!(
        (pages(&bench), queues.interrupt_reasons()),
        ([64, 0, 0, 0, 0, 0, 0, 0], 2)
    );
    let error = change(&mut bench, (1 << 20) + 1).unwrap_err();
    assert!(error.to_string().contains("1M of memory"), "{error}");
    bench.device.config().write(4, &[64, 0]);
    assert_eq!(pages(&bench)[4], 64);
    // What a driver had given it is no more when it is gone; the target is.
    bench.device.stop();
    assert_eq!(pages(&bench), [64, 0, 0, 0, 0, 0, 0, 0]);
    bench.device.change(&Change::Target(1 << 20), None).unwrap();
    assert_eq!(pages(&bench)[0], 0);
}

#[test]
fn a_console_gets_another_size() {
    let (mut bench, _port) = console();
    let mut queues = queues(&bench.ram, 2);
    let size = TerminalSize {
        columns: 300,
        rows: 50,
    };
    bench
        .device
        .change(&Change::Size(size), Some(&queues))
        .unwrap();
    testing::wait(&*bench.device);
    bench.device.serve(Event::Source(0), &mut queues).unwrap();
    let mut size = [0; 4];
    bench.device.config().read(0, &mut size);
    assert_eq!((size, queues.interrupt_reasons()), ([44, 1, 50, 0], 2));
}

#[test]
fn a_device_has_its_own_parts_and_no_others() {
    let (net, _host) = net();
    let (console, _port) = console();
    let (vsock, _folder) = vsock();
    let changes = [
        limits(None),
        Change::AdjustLimits(LimitsChange::parse(None, "bw=0").unwrap()),
        Change::Link(Link::Up),
        Change::Target(1 << 20),
        Change::Size(TerminalSize {
            columns: 1,
            rows: 1,
        }),
        Change::Hinting(Hinting::Start),
        Change::StatsInterval(1),
    ];
    for (mut bench, has) in [
        (
            disk(BlkEngine::Sync),
            [true, true, false, false, false, false, false],
        ),
        (net, [true, true, true, false, false, false, false]),
        (balloon(), [false, false, false, true, false, true, true]),
        (console, [false, false, false, false, true, false, false]),
        (rng(), [true, true, false, false, false, false, false]),
        (vsock, [false; 7]),
    ] {
        for query in [Query::Statistics, Query::Hinting] {
            let tells = bench.device.query(query, None) != Err(ChangeError::Foreign);
            assert_eq!(tells, bench.device.name() == "virtio-balloon");
        }
        for (change, has) in changes.iter().zip(has) {
            let result = bench.device.change(change, None);
            let expected = if has {
                Ok(())
            } else {
                Err(ChangeError::Foreign)
            };
            assert_eq!(result, expected, "{}: {change}", bench.device.name());
        }
    }
}
