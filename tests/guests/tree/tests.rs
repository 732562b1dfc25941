//! The tests, one function each, with the names and the lines of the other architecture. Accesses
//! are aligned: a vCPU without translation may insist on it.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};

use crate::access::{load, load_byte, store, store_byte, widths};
use crate::fdt::Range;
use crate::memory::with_shared;
use crate::run::{device, option, tree};
use crate::{bindings, cpus, firmware, irq, machine, println, text, uart, virtio};

/// The tests by name.
pub const ALL: [(&str, fn()); 16] = [
    ("chatter", chatter),
    ("io_widths", io_widths),
    ("memory_map", memory_map),
    ("panic", panic),
    ("reset", reset),
    ("serial_echo", serial_echo),
    ("smp", smp),
    ("spin", spin),
    ("ticks", ticks),
    ("timer", timer),
    ("virtio_blk", || with_shared(virtio::block::run)),
    ("virtio_console", || with_shared(virtio::console::run)),
    ("virtio_console_burst", || {
        with_shared(virtio::console::burst)
    }),
    ("virtio_net", || with_shared(virtio::net::run)),
    ("virtio_rng", || with_shared(virtio::rng::run)),
    ("virtio_vsock", || with_shared(virtio::vsock::run)),
];

const MIB: u64 = 1 << 20;
const PAGE: u64 = 0x1000;
const WORD: u64 = 8;
/// What lies at the start of RAM: the device tree, this guest.
const OWN: u64 = 8 * MIB;

/// The first and the last words of a range that are nobody's.
fn probes(range: Range) -> [u64; 4] {
    let (start, end) = (range.base + OWN, range.base + range.len);
    [start, start + PAGE - WORD, end - PAGE, end - WORD]
}

/// The memory map tells the truth: each byte of it is there once, and what follows is not.
fn memory_map() {
    let ranges = || bindings::memory(&tree());
    let mut total = 0;
    for range in ranges() {
        println!("{:#x}-{:#x} type 1", range.base, range.base + range.len - 1);
        total += range.len;
    }
    let words = || ranges().flat_map(probes);
    // Every word gets a value of its own before the first is read: no two are the same memory.
    words().for_each(|address| store(address, !address));
    for address in words() {
        assert_eq!(load(address), !address, "at {address:#x}");
    }
    for range in ranges() {
        let after = range.base + range.len;
        assert_eq!(load(after), u64::MAX, "there is memory at {after:#x}");
    }
    println!("{} MiB usable", total / MIB);
}

/// Every vCPU that the device tree names starts once, with the number that it says.
fn smp() {
    let described = bindings::cpus(&tree()).count();
    let running = cpus::start(bindings::cpus(&tree()));
    assert_eq!(running, described, "vCPUs that have come");
    println!("{running} vCPUs");
}

/// Resets through the firmware.
fn reset() {
    println!("resetting");
    firmware::reset();
    panic!("still running after the reset");
}

/// Tells of a panic by the register that the device tree names.
fn panic() {
    let address = device("qemu,pvpanic-mmio");
    let events = load_byte(address);
    assert_eq!(events, 1, "the events that are known");
    println!("telling of a panic");
    store_byte(address, events);
    panic!("still running after the panic");
}

/// Computes for ever.
fn spin() {
    println!("spinning");
    loop {
        core::hint::spin_loop();
    }
}

const TICKS: u32 = 20;
static TICKED: AtomicU32 = AtomicU32::new(0);

/// The timer ticks while the vCPU sleeps, and while it computes.
fn timer() {
    irq::timer(|| {
        let ticked = TICKED.load(Ordering::Relaxed) + 1;
        TICKED.store(ticked, Ordering::Relaxed);
        irq::set_timer(true);
    });
    irq::set_timer(true);
    while TICKED.load(Ordering::Relaxed) < TICKS {
        irq::wait();
    }
    println!("{TICKS} ticks asleep");
    irq::interruptible(|| {
        while TICKED.load(Ordering::Relaxed) < 2 * TICKS {
            core::hint::spin_loop();
        }
    });
    irq::set_timer(false);
    println!("{TICKS} ticks computing");
}

/// Ticks between two lines.
const ROUND: u32 = 3;

/// Prints a number after every few ticks, asleep until there is input, then computing until there is more; without a
/// timer (`mode=none`) after some time.
fn ticks() {
    let is_timed = option("mode") != Some("none");
    if is_timed {
        irq::timer(|| {
            let ticked = TICKED.load(Ordering::Relaxed) + 1;
            TICKED.store(ticked, Ordering::Relaxed);
            irq::set_timer(true);
        });
        irq::set_timer(true);
    }
    let mut last = machine::ticks();
    let mut numbers = 1..;
    let mut round = |wait: fn()| {
        let (begin, end) = (
            TICKED.load(Ordering::Relaxed),
            last + machine::ticks_per_second() / 100,
        );
        while if is_timed {
            TICKED.load(Ordering::Relaxed).wrapping_sub(begin) < ROUND
        } else {
            machine::ticks() < end
        } {
            wait();
        }
        let now = machine::ticks();
        assert!(now > last, "the counter went from {last} to {now}");
        last = now;
        text::decimal(numbers.next().unwrap_or_default());
        println!();
    };
    let sleep: fn() = if is_timed {
        irq::wait
    } else {
        core::hint::spin_loop
    };
    while uart::take().is_none() {
        round(sleep);
    }
    println!("user mode");
    irq::interruptible(|| {
        while uart::take().is_none() {
            round(core::hint::spin_loop);
        }
    });
}

const LINE: usize = 4096;
static LINE_BYTES: [AtomicU8; LINE] = [const { AtomicU8::new(0) }; LINE];
static LINE_LEN: AtomicUsize = AtomicUsize::new(0);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static DONE: AtomicBool = AtomicBool::new(false);

/// Echoes lines in upper case until one is `q`. Input is read in the interrupt handler only.
fn serial_echo() {
    let tree = tree();
    let node = tree.nodes().find(|node| node.is_compatible(uart::BINDING));
    let cells = node.and_then(|node| node.property(b"interrupts"));
    assert!(cells.is_some(), "the UART has no interrupt");
    uart::listen(receive);
    println!("ready");
    while !DONE.load(Ordering::Relaxed) {
        irq::wait();
    }
    assert!(INTERRUPTED.load(Ordering::Relaxed));
}

fn receive() {
    INTERRUPTED.store(true, Ordering::Relaxed);
    while let Some(byte) = uart::take() {
        match byte {
            b'\n' => end_of_line(),
            other => {
                let len = LINE_LEN.load(Ordering::Relaxed);
                LINE_BYTES[len].store(other, Ordering::Relaxed);
                LINE_LEN.store(len + 1, Ordering::Relaxed);
            }
        }
    }
}

fn end_of_line() {
    let len = LINE_LEN.load(Ordering::Relaxed);
    LINE_LEN.store(0, Ordering::Relaxed);
    let line = &LINE_BYTES[..len];
    if let [only] = line
        && only.load(Ordering::Relaxed) == b'q'
    {
        DONE.store(true, Ordering::Relaxed);
        return;
    }
    for character in line {
        text::text(&[character.load(Ordering::Relaxed).to_ascii_uppercase()]);
    }
    text::text(b"\n");
}

/// Prints lines of 64 bytes, 1 MiB or `bytes=N` in all.
fn chatter() {
    const TEXT: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.\n";
    let bytes = option("bytes").map_or(1 << 20, |text| text.parse().expect("bytes=NUMBER"));
    for _ in 0..bytes / TEXT.len() {
        text::text(TEXT);
    }
}

/// Accesses of every width to what is not there read as all ones; a device's registers take every
/// width too.
fn io_widths() {
    /// In the window for devices, which has no device here.
    const NOTHING: u64 = 0x7000_0000;
    for offset in [0, 8, 0xff8] {
        assert_eq!(
            widths(NOTHING + offset),
            [0xff, 0xffff, 0xffff_ffff, u64::MAX]
        );
        store(NOTHING + offset, 0);
    }
    uart::take_every_width();
    println!("mmio done");
}
