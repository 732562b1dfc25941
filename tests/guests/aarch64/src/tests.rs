//! The tests, one function each, with the names and the lines of the other architecture.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};

use crate::fdt::Range;
use crate::machine::{register, set_register, ticks_per_second};
use crate::memory::with_shared;
use crate::{bindings, cpus, gic, option, println, serial, tree, virtio};

/// The tests by name.
pub const ALL: [(&str, fn()); 14] = [
    ("chatter", chatter),
    ("io_widths", io_widths),
    ("memory_map", memory_map),
    ("panic", panic),
    ("reset", reset),
    ("serial_echo", serial_echo),
    ("smp", smp),
    ("spin", spin),
    ("timer", timer),
    ("virtio_blk", || with_shared(virtio::block::run)),
    ("virtio_console", || with_shared(virtio::console::run)),
    ("virtio_net", || with_shared(virtio::net::run)),
    ("virtio_rng", || with_shared(virtio::rng::run)),
    ("virtio_vsock", || with_shared(virtio::vsock::run)),
];

const MIB: u64 = 1 << 20;
const PAGE: u64 = 0x1000;
const WORD: u64 = 8;
/// What lies at the start of RAM: the device tree, this guest.
const OWN: u64 = 4 * MIB;

fn load(address: u64) -> u64 {
    let value;
    // SAFETY: without an MMU every address is mapped; what is not there reads as something.
    unsafe { asm!("ldr {}, [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

fn store(address: u64, value: u64) {
    // SAFETY: the callers use memory that is nobody's.
    unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) address, options(nostack)) };
}

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

/// Every vCPU that the device tree names starts once, with the affinity that it says.
fn smp() {
    let described = bindings::cpus(&tree()).count();
    let running = cpus::start(bindings::cpus(&tree()));
    assert_eq!(running, described, "vCPUs that have come");
    println!("{running} vCPUs");
}

/// Resets through PSCI.
fn reset() {
    println!("resetting");
    const SYSTEM_RESET: u64 = 0x8400_0009;
    // SAFETY: ends the machine, which is the purpose.
    unsafe { asm!("hvc #0", in("x0") SYSTEM_RESET, options(nostack)) };
    panic!("still running after the reset");
}

/// Tells of a panic by the register that the device tree names.
fn panic() {
    let tree = tree();
    let mut nodes = tree.nodes();
    let node = nodes.find(|node| node.is_compatible(b"qemu,pvpanic-mmio"));
    let place = node.and_then(|node| node.reg().next());
    let address = place.expect("no pvpanic").base;
    let events: u32;
    // SAFETY: a register of a device.
    unsafe { asm!("ldrb {:w}, [{}]", out(reg) events, in(reg) address, options(nostack)) };
    assert_eq!(events, 1, "the events that are known");
    println!("telling of a panic");
    // SAFETY: ends the machine, which is the purpose.
    unsafe { asm!("strb {:w}, [{}]", in(reg) events, in(reg) address, options(nostack)) };
    panic!("still running after the panic");
}

/// Computes for ever.
fn spin() {
    println!("spinning");
    loop {
        core::hint::spin_loop();
    }
}

/// The virtual timer's private interrupt.
const TIMER_INTID: u32 = 27;
const TICKS: u32 = 20;
static TICKED: AtomicU32 = AtomicU32::new(0);

fn set_timer(control: u64) {
    // SAFETY: the timer belongs to this test.
    unsafe {
        asm!(
            "msr cntv_tval_el0, {}",
            "msr cntv_ctl_el0, {}",
            "isb",
            in(reg) ticks_per_second() / 1000,
            in(reg) control,
            options(nostack),
        );
    }
}

/// The timer ticks while the vCPU sleeps, and while it computes.
fn timer() {
    gic::on(TIMER_INTID, || {
        let ticked = TICKED.load(Ordering::Relaxed) + 1;
        TICKED.store(ticked, Ordering::Relaxed);
        set_timer(1);
    });
    set_timer(1);
    while TICKED.load(Ordering::Relaxed) < TICKS {
        gic::wait();
    }
    println!("{TICKS} ticks asleep");
    gic::interruptible(|| {
        while TICKED.load(Ordering::Relaxed) < 2 * TICKS {
            core::hint::spin_loop();
        }
    });
    set_timer(0);
    println!("{TICKS} ticks computing");
}

/// PL011 registers (DDI 0183).
const DR: u64 = 0x00;
const FR: u64 = 0x18;
const LCR_H: u64 = 0x2c;
const IMSC: u64 = 0x38;
const MIS: u64 = 0x40;
const RXFE: u32 = 1 << 4;
const FEN: u32 = 1 << 4;
/// Receive and receive timeout.
const RECEIVE: u32 = 1 << 4 | 1 << 6;

const LINE: usize = 4096;
static LINE_BYTES: [AtomicU8; LINE] = [const { AtomicU8::new(0) }; LINE];
static LINE_LEN: AtomicUsize = AtomicUsize::new(0);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static DONE: AtomicBool = AtomicBool::new(false);

fn uart() -> u64 {
    bindings::uart(&tree()).expect("no PL011")
}

fn uart_register(offset: u64) -> u32 {
    // SAFETY: a register of the PL011.
    unsafe { register(uart() + offset) }
}

fn set_uart_register(offset: u64, value: u32) {
    // SAFETY: a register of the PL011.
    unsafe { set_register(uart() + offset, value) }
}

/// Echoes lines in upper case until one is `q`. Input is read in the interrupt handler only.
fn serial_echo() {
    let node = tree().nodes().find(|node| node.is_compatible(b"arm,pl011"));
    let cells = node.and_then(|node| node.text(b"interrupts").map(<[u8]>::len));
    assert!(cells.is_some(), "the UART has no interrupt");
    gic::on(32, receive);
    set_uart_register(LCR_H, FEN);
    set_uart_register(IMSC, RECEIVE);
    println!("ready");
    while !DONE.load(Ordering::Relaxed) {
        gic::wait();
    }
    assert!(INTERRUPTED.load(Ordering::Relaxed));
}

fn receive() {
    INTERRUPTED.store(true, Ordering::Relaxed);
    let _ = uart_register(MIS);
    while uart_register(FR) & RXFE == 0 {
        match uart_register(DR) as u8 {
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
        serial::text(&[character.load(Ordering::Relaxed).to_ascii_uppercase()]);
    }
    serial::text(b"\n");
}

/// Prints lines of 64 bytes, 1 MiB or `bytes=N` in all.
fn chatter() {
    const TEXT: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.\n";
    let bytes = option("bytes").map_or(1 << 20, |text| text.parse().expect("bytes=NUMBER"));
    for _ in 0..bytes / TEXT.len() {
        serial::text(TEXT);
    }
}

/// Accesses of every width to what is not there read as all ones; a device's registers take every
/// width too. Without an MMU an access is aligned.
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
    // The first byte of the peripheral's identification, at any width.
    let id = uart() + 0xfe0;
    assert_eq!(widths(id), [0x11, 0x11, 0x11, 0x11]);
    store(id, u64::MAX);
    assert_eq!(widths(id)[2], 0x11);
    println!("mmio done");
}

fn widths(address: u64) -> [u64; 4] {
    let (byte, half, word): (u64, u64, u64);
    // SAFETY: aligned, and no memory that Rust knows.
    unsafe {
        asm!(
            "ldrb {:w}, [{address}]",
            "ldrh {:w}, [{address}]",
            "ldr {:w}, [{address}]",
            out(reg) byte,
            out(reg) half,
            out(reg) word,
            address = in(reg) address,
            options(nostack),
        );
    }
    [byte, half, word, load(address)]
}
