//! The guest of `benches/block` and `benches/net`: drives a virtio disk or network device from user
//! mode, with interrupts off, and says how long that took. It runs on any VMM that boots PVH kernels
//! and has virtio-mmio.
//!
//! On its command line: `bench=read4k|read1m|latency` (or `send|receive`, with `frame=N` bytes), `count=N` requests, `depth=N` in flight, and
//! where the device is: `mmio=0xADDRESS`, or what Linux is told, `virtio_mmio.device=4K@0xADDRESS:IRQ`.
//! It prints `READY`, waits for a byte of serial input, runs, prints `RESULT name=value…`, waits for
//! another byte and resets the machine: between the two bytes it does nothing but the measured
//! requests. Times are ticks of the time stamp counter.

#![no_std]
#![no_main]

mod disk;
mod net;
mod registers;
mod ring;

use guest::machine::{halt, port_in, port_out, ticks};
use guest::serial::{DATA, READY, STATUS};
use guest::{option, println, user};

use net::{Net, Way};

use disk::{BLOCK, DEPTH_MAX, Disk, LATENCIES_MAX, Latencies};

guest::entry!(main);

/// How a run reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Places {
    Random,
    Sequential,
}

#[derive(Clone, Copy)]
struct Bench {
    places: Places,
    /// Bytes of a request.
    len: u32,
    depth: usize,
    count: usize,
    /// Every request's time is kept.
    each: bool,
}

fn number(name: &str, default: usize) -> usize {
    option(name).map_or(default, |text| text.parse().expect("NAME=NUMBER"))
}

impl Bench {
    fn from_command_line() -> Self {
        let name = option("bench").expect("no bench=");
        let bench = Self {
            places: Places::Random,
            len: 4096,
            depth: number("depth", 1).clamp(1, DEPTH_MAX),
            count: number("count", 10_000),
            each: false,
        };
        match name {
            "read4k" => bench,
            "read1m" => Self {
                places: Places::Sequential,
                len: 1 << 20,
                ..bench
            },
            "latency" => Self {
                depth: 1,
                count: bench.count.min(LATENCIES_MAX),
                each: true,
                ..bench
            },
            _ => panic!("bench={name}: no such bench"),
        }
    }
}

/// Where the next request reads; xorshift64 where that is random.
struct Walk {
    places: Places,
    /// Requests that the disk has room for.
    slots: u64,
    state: u64,
}

impl Walk {
    fn next(&mut self) -> u64 {
        match self.places {
            Places::Sequential => self.state += 1,
            Places::Random => {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
            }
        }
        self.state % self.slots
    }
}

/// What a run took.
struct Taken {
    ticks: u64,
    notifications: u64,
}

/// Reads `count` times, with as many requests in flight as the bench says, and notifies the device
/// once for all that can be put on the queue at a time.
fn run(disk: &mut Disk, bench: &Bench, count: usize, latencies: &mut Latencies) -> Taken {
    let mut walk = Walk {
        places: bench.places,
        slots: disk.bytes() / u64::from(bench.len),
        state: 0x9e37_79b9_7f4a_7c15,
    };
    let blocks = u64::from(bench.len) / BLOCK;
    let (mut begun, mut ended) = (0, 0);
    let mut notifications = 0;
    let start = ticks();
    for slot in 0..bench.depth.min(count) {
        disk.push(slot, walk.next() * blocks, bench.len);
        begun += 1;
    }
    let mut begin = ticks();
    notifications += u64::from(disk.announce());
    while ended < count {
        let Some(slot) = disk.ended() else {
            core::hint::spin_loop();
            continue;
        };
        let mut next = Some(slot);
        while let Some(slot) = next {
            if bench.each {
                latencies.keep(ended, ticks() - begin);
            }
            disk.check(slot, bench.len);
            ended += 1;
            if begun < count {
                disk.push(slot, walk.next() * blocks, bench.len);
                begun += 1;
            }
            next = disk.ended();
        }
        begin = ticks();
        notifications += u64::from(disk.announce());
    }
    Taken {
        ticks: ticks() - start,
        notifications,
    }
}

/// Waits for a byte of serial input.
fn wait_for_input() {
    while port_in(STATUS) & READY == 0 {}
    port_in(DATA);
}

/// Passes frames: `bench=send|receive`, `frame=N` bytes. Those to receive come when the host likes.
fn network(way: Way) {
    let (frame, count) = (number("frame", 60).clamp(14, 1514), number("count", 10_000));
    user(|| {
        let mut net = Net::start(way, frame, number("depth", 1).max(1));
        if way == Way::Out {
            // Starts whatever the host starts late.
            net.run(count / 10, frame);
        }
        println!("READY");
        wait_for_input();
        let (ticks, notifications) = net.run(count, frame);
        println!("RESULT frames={count} ticks={ticks} notifications={notifications}");
        wait_for_input();
    });
    reset()
}

/// A reset through the i8042, which every VMM has.
fn reset() -> ! {
    port_out(0x64, 0xfe);
    halt()
}

fn main() {
    match option("bench") {
        Some("send") => network(Way::Out),
        Some("receive") => network(Way::In),
        _ => disk(),
    }
}

fn disk() {
    let mut bench = Bench::from_command_line();
    let name = option("bench").unwrap_or_default();
    user(|| {
        let mut disk = Disk::start();
        let mut latencies = Latencies::take();
        bench.depth = bench.depth.min(disk.room(bench.len));
        // Maps the buffers, and starts whatever the host starts late.
        run(&mut disk, &bench, bench.count / 10, &mut latencies);
        println!("READY");
        wait_for_input();
        let taken = run(&mut disk, &bench, bench.count, &mut latencies);
        let spread = bench.each.then(|| latencies.sorted(bench.count));
        let (min, median, p99) = spread.map_or((0, 0, 0), |sorted| {
            let at = |part: usize| sorted.get(sorted.len() * part / 100).copied().unwrap_or(0);
            (at(0), at(50), at(99))
        });
        println!(
            "RESULT bench={name} depth={} requests={} ticks={} notifications={} min={min} \
             median={median} p99={p99}",
            bench.depth, bench.count, taken.ticks, taken.notifications
        );
        wait_for_input();
    });
    reset()
}
