//! What devices count and tell, whatever their drivers do.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::changes::{Disk, STATUS};
use super::*;
use crate::metrics::DeviceMetrics;

/// What a device tells from now on.
fn ear(monitor: &Monitor) -> Arc<Mutex<Vec<Notice>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    monitor
        .notices()
        .listen(Arc::new(move |notice| ear.lock().unwrap().push(notice)));
    heard
}

/// Requests, bytes and errors of an operation.
fn of(read: &DeviceMetrics, name: &str) -> [u64; 3] {
    let operation = &read.operations[name];
    [operation.requests, operation.bytes, operation.errors]
}

fn wait_until(what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !what() {
        assert!(Instant::now() < end, "it does not come");
        std::thread::yield_now();
    }
}

#[test]
fn frames_are_counted_by_direction_and_so_are_those_that_are_lost_or_have_waited() {
    let (mut bench, host) = net();
    let device = &mut *bench.device;
    device.start(0);
    let mut queues = queues(&bench.ram, 3);
    let mut receiver = Driver::of_queue(&bench.ram, 0);
    let mut sender = Driver::of_queue(&bench.ram, 1);
    // A frame that comes before there is a buffer, and is looked at again and again.
    host.send(&[1; 72]).unwrap();
    for _ in 0..5 {
        device.serve(Event::Source(0), &mut queues).unwrap();
    }
    assert_eq!(device.monitor().read().stalls, 0, "it waits still");
    receiver.request(&[(DATA, 2000, true)]);
    assert_eq!(receiver.serve(device, &mut queues), [(0, 72)]);
    assert_eq!(device.monitor().read().stalls, 1);
    // A buffer that waits for a frame.
    receiver.request(&[(DATA, 100, true)]);
    device.serve(Event::Queue(0), &mut queues).unwrap();
    host.send(&[1; 72]).unwrap();
    device.serve(Event::Source(0), &mut queues).unwrap();
    assert_eq!(receiver.used(), [(0, 72)]);
    // One that it has no room for.
    receiver.request(&[(DATA, 100, true)]);
    device.serve(Event::Queue(0), &mut queues).unwrap();
    host.send(&[1; 1000]).unwrap();
    device.serve(Event::Source(0), &mut queues).unwrap();
    assert_eq!(receiver.used(), []);
    // A frame, and what is none.
    for len in [112, 5, 0] {
        sender.request(&[(DATA, len, false)]);
        assert_eq!(sender.serve(device, &mut queues), [(0, 0)]);
    }
    // A command that is none.
    let mut control = Driver::of_queue(&bench.ram, 2);
    control.request(&[(DATA, 4, false), (DATA + 8, 1, true)]);
    assert_eq!(control.serve(device, &mut queues), [(0, 1)]);
    let read = device.monitor().read();
    assert_eq!(of(&read, "receive"), [3, 120, 1]);
    assert_eq!(of(&read, "transmit"), [3, 100, 2]);
    assert_eq!(of(&read, "control"), [1, 0, 1]);
    assert_eq!(read.stalls, 1);
    // The host's end goes.
    let heard = ear(&device.monitor());
    testing::close((host, bench.host));
    for _ in 0..5 {
        sender.request(&[(DATA, 112, false)]);
        assert_eq!(sender.serve(device, &mut queues), [(0, 0)]);
    }
    assert_eq!(of(&device.monitor().read(), "transmit"), [8, 100, 7]);
    let heard = heard.lock().unwrap();
    assert!(
        matches!(heard[0], Notice::HostError { times: 1, .. }),
        "{heard:?}"
    );
}

#[test]
fn packets_and_connections_are_counted_and_so_is_what_is_refused() {
    let (mut bench, folder) = vsock();
    let device = &mut *bench.device;
    let mut queues = queues(&bench.ram, 3);
    let mut receiver = Driver::of_queue(&bench.ram, 0);
    let mut sender = Driver::of_queue(&bench.ram, 1);
    let listener = UnixListener::bind(folder.path().join("v_7")).unwrap();
    let mut send =
        |device: &mut dyn VirtioDevice, queues: &mut Queues, port: u32, op: u16, len: u32| {
            sender.put(DATA, [5u64, 2]);
            sender.put(DATA + 16, [9u32, port, len]);
            sender.put(DATA + 28, [1u16, op]);
            sender.put(DATA + 32, [0u32, 1 << 20, 0]);
            sender.request(&[(DATA, 44 + len, false)]);
            assert_eq!(sender.serve(device, queues), [(0, 0)]);
        };
    let count = |device: &dyn VirtioDevice| {
        let read = device.monitor().read();
        let all = ["transmit", "receive", "connect"].map(|name| of(&read, name));
        (all, read.streams)
    };
    // Nobody listens there; and somebody does.
    send(device, &mut queues, 8, 1, 0);
    assert_eq!(count(device), ([[1, 0, 1], [0; 3], [1, 0, 1]], Some(0)));
    send(device, &mut queues, 7, 1, 0);
    send(device, &mut queues, 7, 5, 100);
    assert_eq!(count(device), ([[3, 100, 1], [0; 3], [2, 0, 1]], Some(1)));
    let (mut host, _) = listener.accept().unwrap();
    let mut got = [0; 100];
    host.read_exact(&mut got).unwrap();
    // The refusal and the answer wait for buffers, then data of the host.
    for _ in 0..2 {
        receiver.request(&[(DATA + 0x1000, 200, true)]);
        assert_eq!(receiver.serve(device, &mut queues), [(0, 44)]);
    }
    std::io::Write::write_all(&mut host, &[1; 60]).unwrap();
    for _ in 0..5 {
        device.serve(Event::Source(0), &mut queues).unwrap();
    }
    assert_eq!(device.monitor().read().stalls, 1);
    receiver.request(&[(DATA + 0x1000, 200, true)]);
    assert_eq!(receiver.serve(device, &mut queues), [(0, 104)]);
    assert_eq!(
        count(device),
        ([[3, 100, 1], [3, 60, 0], [2, 0, 1]], Some(1))
    );
    // Something that is no packet.
    send(device, &mut queues, 7, 77, 0);
    assert_eq!(count(device).0[0], [4, 100, 2]);
    assert_eq!(count(device).1, Some(0));
    device.stop();
    assert_eq!(count(device).1, Some(0));
}

#[test]
fn a_transport_tells_of_drivers_and_of_what_they_do_wrong() {
    let mut disk = Disk::new(BlkEngine::Sync);
    let monitor = disk.transport.monitor();
    let heard = ear(&monitor);
    let next = || {
        wait_until(|| !heard.lock().unwrap().is_empty());
        heard.lock().unwrap().remove(0)
    };
    for times in 1..3 {
        disk.start();
        assert_eq!(next(), Notice::DriverReady { times });
        disk.request();
        disk.is_answered();
        // More than the queue has.
        disk.driver.put(testing::AVAILABLE + 2, 999u16);
        disk.write(0x50, 0);
        let Notice::NeedsReset {
            cause,
            times: again,
        } = next()
        else {
            panic!("another notice")
        };
        assert!(cause.contains("more than the queue has"), "{cause}");
        assert_eq!(again, times);
        assert_eq!(disk.transport.state(), DeviceState::NeedsReset);
        // The driver hears of it, too.
        disk.line.read().unwrap();
        disk.write(STATUS, 0);
    }
    let read = monitor.read();
    assert_eq!(of(&read, "read"), [2, 1024, 0]);
    assert_eq!((read.drivers, read.needs_resets), (2, 2));
    // A device is the same behind another transport, and when it is nowhere.
    let device = disk.transport.take_device().unwrap();
    assert_eq!(device.monitor().read(), read);
    assert_eq!(disk.transport.monitor().read(), read);
    assert!(heard.lock().unwrap().is_empty());
}

#[test]
fn a_driver_that_breaks_a_rule_again_and_again_is_told_of_at_a_pace_and_counted() {
    let mut disk = Disk::new(BlkEngine::Sync);
    let monitor = disk.transport.monitor();
    let heard = ear(&monitor);
    const TIMES: u64 = 200;
    for times in 1..=TIMES {
        disk.start();
        disk.driver.put(testing::AVAILABLE + 2, 999u16);
        disk.write(0x50, 0);
        wait_until(|| monitor.read().needs_resets == times);
        disk.write(STATUS, 0);
    }
    assert_eq!(monitor.read().drivers, TIMES);
    let heard = heard.lock().unwrap().len();
    // Eight of each kind, and one for each second that it took.
    assert!((16..100).contains(&heard), "{heard}");
}

/// A device with a fault of its own.
#[derive(Debug)]
struct Faulty(Arc<Monitor>);

impl VirtioDevice for Faulty {
    fn id(&self) -> u32 {
        42
    }

    fn name(&self) -> &'static str {
        "faulty"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![testing::SIZE]
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::default()
    }

    fn monitor(&self) -> Arc<Monitor> {
        Arc::clone(&self.0)
    }

    fn serve(&mut self, _: Event, _: &mut Queues) -> Result<bool, QueueError> {
        self.0.stalls.add(3);
        panic!("a fault of the device")
    }
}

#[test]
fn a_device_that_is_lost_is_told_of_once_and_has_its_counts_still() {
    let mut disk = Disk::behind(Box::new(Faulty(Arc::default())), ram());
    let monitor = disk.transport.monitor();
    let heard = ear(&monitor);
    disk.start();
    disk.write(0x50, 0);
    // The driver is told that it has to reset the device.
    disk.line.read().unwrap();
    assert_eq!(disk.transport.state(), DeviceState::Lost);
    for _ in 0..3 {
        disk.write(STATUS, 0);
        assert_eq!(disk.transport.state(), DeviceState::Lost);
    }
    let heard = heard.lock().unwrap();
    assert_eq!(heard[0], Notice::DriverReady { times: 1 });
    assert!(
        matches!(&heard[1..], [Notice::Lost { cause }] if cause.contains("faulty")),
        "{heard:?}"
    );
    let read = disk.transport.monitor().read();
    assert_eq!((read.stalls, read.drivers, read.needs_resets), (3, 1, 0));
    assert!(disk.transport.take_device().is_none());
}

/// Whatever a driver does, what is counted is what it did.
#[test]
fn no_driver_confuses_the_counters() {
    let (net, _host) = net();
    let (console, _port) = console();
    let (vsock, _folder) = vsock();
    for mut bench in [
        disk(BlkEngine::Sync),
        disk(BlkEngine::Auto),
        net,
        balloon(),
        console,
        rng(),
        vsock,
    ] {
        let name = bench.device.name();
        let monitor = bench.device.monitor();
        let count = bench.device.queue_sizes().len();
        for round in 0..64 {
            for queue in 0..count {
                let _ = misbehave(&mut bench, queue, round);
            }
        }
        let read = monitor.read();
        let all = read.operations.values();
        let requests: u64 = all.clone().map(|operation| operation.requests).sum();
        let most = u64::try_from(2 * 64 * count).unwrap();
        assert!((1..=most).contains(&requests), "{name}: {read:?}");
        for operation in all {
            assert!(operation.errors <= operation.requests, "{name}: {read:?}");
            assert!(operation.bytes < 1 << 32, "{name}: {read:?}");
        }
        assert_eq!(read.limiter_waits, 0);
    }
}
