//! What is true of every device, whatever it does.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::testing::{DATA, Driver, NEXT, QUEUE, WRITE, logged, queues, ram};
use super::*;
use crate::config::{BalloonConfig, BlkConfig, BlkEngine, NetConfig, VsockConfig};
use crate::{OutputRing, Overflow};

mod changes;
mod counted;
mod saved;

/// A device, with the host's end of it.
struct Bench {
    device: Box<dyn VirtioDevice>,
    ram: GuestRam,
    /// How many requests the host has seen so far; each is its own.
    host: Box<dyn FnMut() -> usize>,
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap()
}

/// Devices and what belongs to them lasts as long as the value.
fn disk(engine: BlkEngine) -> Bench {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 16).unwrap();
    let config = BlkConfig {
        path: file.path().to_owned(),
        engine,
        ..BlkConfig::default()
    };
    let device = Box::new(Block::open(&config).unwrap());
    let host = Box::new(move || {
        let content = std::fs::read(file.path()).unwrap();
        content.chunks(512).filter(|sector| sector[0] != 0).count()
    });
    Bench {
        device,
        ram: ram(),
        host,
    }
}

fn net() -> (Bench, UnixDatagram) {
    let (device, host) = UnixDatagram::pair().unwrap();
    device.set_nonblocking(true).unwrap();
    host.set_nonblocking(true).unwrap();
    let device = Net::from_fds(vec![OwnedFd::from(device)], &NetConfig::default()).unwrap();
    let (reader, mut seen) = (host.try_clone().unwrap(), 0);
    let bench = Bench {
        device: Box::new(device),
        ram: ram(),
        host: Box::new(move || {
            while reader.recv(&mut [0; 2048]).is_ok() {
                seen += 1;
            }
            seen
        }),
    };
    (bench, host)
}

fn balloon() -> Bench {
    let ram = ram();
    ram.write_slice(&[1; 0x1_0000], GuestAddress(VICTIM))
        .unwrap();
    let config = BalloonConfig {
        deflate_on_oom: true,
        free_page_reporting: true,
        free_page_hinting: true,
        ..BalloonConfig::default()
    };
    let guest = ram.clone();
    Bench {
        device: Box::new(Balloon::new(&config, 1 << 20).unwrap()),
        ram,
        host: Box::new(move || {
            let gone = |page: &u64| {
                let address = GuestAddress(VICTIM + (page << 12));
                guest.read_obj::<u8>(address).unwrap() == 0
            };
            (0..16).filter(gone).count()
        }),
    }
}

/// Where the tests look for pages that are given back.
const VICTIM: u64 = 0x4_0000;

fn console() -> (Bench, ConsolePort) {
    let output = OutputRing::new(1 << 10, event());
    let device = VirtioConsole::new(output.clone(), Overflow::Wait, event()).unwrap();
    let port = device.port();
    let bench = Bench {
        device: Box::new(device),
        ram: ram(),
        host: Box::new(move || output.tail().len()),
    };
    (bench, port)
}

fn rng() -> Bench {
    Bench {
        device: Box::new(Rng::new(&crate::config::Limits::default()).unwrap()),
        ram: ram(),
        host: Box::new(|| 0),
    }
}

fn vsock() -> (Bench, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let config = VsockConfig {
        id: None,
        cid: 5,
        path: folder.path().join("v"),
    };
    let bench = Bench {
        device: Box::new(Vsock::open(&config).unwrap()),
        ram: ram(),
        host: Box::new(|| 0),
    };
    (bench, folder)
}

/// How many requests are queued, and with which of them the stop comes: at last to see that all would
/// have been seen.
const QUEUED: u16 = 8;
const STOPS: [u16; 2] = [3, QUEUED];

/// Queues requests, of which each has one or two descriptors, and serves a device that is stopped with one
/// of them. Gives how many were answered.
fn stopped(
    bench: &mut Bench,
    queue: usize,
    stop: u16,
    mut describe: impl FnMut(&Driver, u16) -> Vec<(u64, u32, bool)>,
) -> usize {
    let count = bench.device.queue_sizes().len();
    let mut queues = queues(&bench.ram, count);
    let mut driver = Driver::of_queue(&bench.ram, queue);
    for number in 0..QUEUED {
        let buffers = describe(&driver, number);
        let head = 2 * number;
        for (place, (address, len, writable)) in (0u16..).zip(&buffers) {
            let more = if usize::from(place) + 1 < buffers.len() {
                NEXT
            } else {
                0
            };
            let write = if *writable { WRITE } else { 0 };
            driver.descriptor(head + place, *address, *len, more | write, head + place + 1);
        }
        driver.offer(head);
    }
    queues.ring(queue).unwrap().stop_with = Some(stop);
    let mut events = vec![Event::Queue(queue)];
    events.extend((0..bench.device.sources().len()).map(Event::Source));
    // Whatever else wakes it.
    for event in events.iter().chain(&events) {
        // Its thread asks whether it was stopped between one event and the next.
        while bench.device.serve(*event, &mut queues).unwrap() && !queues.is_stopping() {}
    }
    assert!(queues.is_stopping());
    bench.device.stop();
    driver.used().len()
}

/// R51: the driver resets, or the VM ends, while requests wait. The one that was taken when the stop came may
/// go on; no other begins.
#[test]
fn r51_after_the_stop_no_further_io_of_the_host_begins_whatever_the_device() {
    for stop in STOPS {
        // What was answered and what the host has seen; all that was taken before the stop may be there.
        let check = |answered: usize, seen: usize, what: &str| {
            let most = usize::from(stop);
            let text = format!("{what}, stopped with {stop}: {answered} answered, {seen} seen");
            assert!(answered <= most && seen <= most, "{text}");
            assert!(answered.max(seen) >= most - 1, "{text}");
        };
        for engine in [BlkEngine::Sync, BlkEngine::Auto] {
            let mut disk = disk(engine);
            disk.device.start(0);
            let answered = stopped(&mut disk, 0, stop, |driver, number| {
                let at = DATA + 0x1000 * u64::from(number);
                driver.put(at, [1u32, 0, number.into(), 0]);
                for word in 0..16 {
                    driver.put(at + 16 + 32 * word, [0xff_u8; 32]);
                }
                vec![(at, 16 + 512, false), (at + 0x800, 1, true)]
            });
            check(answered, (disk.host)(), "disk");
        }
        let (mut net, host) = net();
        net.device.start(0);
        let answered = stopped(&mut net, 1, stop, |_, _| vec![(DATA, 100, false)]);
        check(answered, (net.host)(), "sent");
        for _ in 0..QUEUED {
            host.send(&[0; 100]).unwrap();
        }
        let answered = stopped(&mut net, 0, stop, |_, _| vec![(DATA, 2000, true)]);
        check(answered, 0, "received");
        let mut balloon = balloon();
        let answered = stopped(&mut balloon, 0, stop, |driver, number| {
            let at = DATA + 16 * u64::from(number);
            let page = u32::try_from(VICTIM >> 12).unwrap() + 2 * u32::from(number);
            driver.put(at, page);
            vec![(at, 4, false)]
        });
        check(answered, (balloon.host)(), "inflated");
        let (mut console, port) = console();
        let answered = stopped(&mut console, 1, stop, |_, _| vec![(DATA, 1, false)]);
        check(answered, (console.host)(), "printed");
        port.receive(&[1; 64]);
        let answered = stopped(&mut console, 0, stop, |_, _| vec![(DATA, 4, true)]);
        check(answered, 0, "typed");
        let answered = stopped(&mut rng(), 0, stop, |_, _| vec![(DATA, 16, true)]);
        check(answered, 0, "random");
    }
}

/// The guest connects to a program of the host, which sees no more than what was taken before the stop.
#[test]
fn r51_after_the_stop_no_further_packet_reaches_the_host() {
    for stop in STOPS {
        let (mut bench, folder) = vsock();
        let listener = UnixListener::bind(folder.path().join("v_7")).unwrap();
        // struct virtio_vsock_hdr (5.10.6): cids, ports, length, type, operation, flags, room, taken.
        let packet = |driver: &Driver, at: u64, op: u16, len: u32| {
            driver.put(at, [5u64, 2]);
            driver.put(at + 16, [9u32, 7, len]);
            driver.put(at + 28, [1u16, op]);
            driver.put(at + 32, [0u32, 1 << 20, 0]);
        };
        let answered = stopped(&mut bench, 1, stop, |driver, number| {
            let at = DATA + 0x100 * u64::from(number);
            // A connection, then a byte each.
            if number == 0 {
                packet(driver, at, 1, 0);
                return vec![(at, 44, false)];
            }
            packet(driver, at, 5, 1);
            vec![(at, 45, false)]
        });
        let (mut host, _) = listener.accept().unwrap();
        let mut got = Vec::new();
        host.read_to_end(&mut got).unwrap();
        assert!(answered <= usize::from(stop), "{answered}");
        assert_eq!(got.len(), usize::from(stop) - 1, "those before the stop");
    }
}

/// R52: whatever a driver does wrong, and however often, the log has an end.
#[test]
fn r52_no_driver_fills_the_log() {
    const TIMES: usize = 300;
    /// A line for each power of two and kind of fault, and some.
    const MOST: usize = 64;
    let (net, _host) = net();
    let (console, _port) = console();
    let (vsock, _folder) = vsock();
    let all = [
        disk(BlkEngine::Sync),
        disk(BlkEngine::Auto),
        net,
        balloon(),
        console,
        rng(),
        vsock,
    ];
    for mut bench in all {
        let name = bench.device.name();
        let count = bench.device.queue_sizes().len();
        let (_, lines) = logged(|| {
            let interrupt = Interrupt::new(event());
            for round in 0..TIMES {
                for queue in 0..count {
                    if let Err(error) = misbehave(&mut bench, queue, round) {
                        // As its thread does.
                        interrupt.fail(&error.to_string());
                    }
                }
            }
        });
        assert!(
            lines.len() < MOST,
            "{name}: {} lines: {lines:?}",
            lines.len()
        );
    }
}

/// One fault on a queue, another one each round.
fn misbehave(bench: &mut Bench, queue: usize, round: usize) -> Result<(), QueueError> {
    let count = bench.device.queue_sizes().len();
    let base = queue as u64 * u64::from(QUEUE);
    let mut driver = Driver::of_queue(&bench.ram, queue);
    driver.put(base + testing::AVAILABLE, [0u16; 2]);
    driver.put(base + testing::USED, [0u16; 2]);
    let mut queues = queues(&bench.ram, count);
    bench.device.start(u64::MAX);
    let kind = u32::try_from(round / 8).unwrap();
    driver.put(DATA, [kind, u32::MAX, u32::MAX, u32::MAX]);
    match round % 8 {
        // Nothing; too little; too much; nowhere to answer; nothing to read.
        0 => driver.request(&[(DATA, 0, false)]),
        1 => driver.request(&[(DATA, 5, false), (DATA, 1, true)]),
        2 => driver.request(&[(DATA, 0x8_0000, false), (DATA, 0x8_0000, true)]),
        3 => driver.request(&[(DATA, 64, false)]),
        4 => driver.request(&[(DATA, 64, true)]),
        // A request beyond everything.
        5 => driver.request(&[(DATA, 16, false), (DATA, 512, true), (DATA, 1, true)]),
        // Outside RAM; a loop.
        6 => driver.request(&[(1 << 40, 16, false), (DATA, 1, true)]),
        _ => {
            driver.descriptor(0, DATA, 16, NEXT, 0);
            driver.offer(0);
        }
    }
    let mut result = bench
        .device
        .serve(Event::Queue(queue), &mut queues)
        .map(drop);
    for source in 0..bench.device.sources().len() {
        let event = Event::Source(source);
        result = result.and(bench.device.serve(event, &mut queues).map(drop));
    }
    bench.device.stop();
    result
}
