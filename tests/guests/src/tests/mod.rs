//! The tests, one function each.

mod endings;
mod io_widths;
mod keyboard;
mod memory_map;
mod pages;
mod serial;
mod ticks;
mod virtio;

use core::sync::atomic::{AtomicU32, Ordering};

use guest::{apic, interrupts, println, smp, user};

/// The tests by name; the one without a name is the guest of clients.
pub const ALL: &[(&str, fn())] = &[
    ("", virtio::client::run),
    ("chatter", serial::chatter),
    ("io_widths", io_widths::run),
    ("keyboard", keyboard::run),
    ("memory_map", memory_map::run),
    ("pages", pages::run),
    ("panic", endings::panic),
    ("reset", endings::reset),
    ("reboots", virtio::reboots::run),
    ("serial_echo", serial::echo),
    ("serial_starts_last", serial::start_last),
    ("smp", smp),
    ("spin", endings::spin),
    ("ticks", ticks::run),
    ("timer", timer),
    ("triple_fault", endings::triple_fault),
    ("virtio_balloon", virtio::balloon::run),
    ("virtio_blk", virtio::block::run),
    ("virtio_console", virtio::console::run),
    ("virtio_console_burst", virtio::console::burst),
    ("virtio_fetch", virtio::fetch::run),
    ("virtio_hostile", virtio::hostile::run),
    ("virtio_jobs", virtio::jobs::run),
    ("virtio_net", virtio::net::run),
    ("virtio_rng", virtio::rng::run),
    ("virtio_vsock", virtio::vsock::run),
];

/// Every vCPU that the MADT names starts exactly once, with the APIC id that the MADT says.
fn smp() {
    let started = smp::start_others();
    let own = apic::id();
    let mut vcpus = 0;
    for (id, &starts) in (0..).zip(&started) {
        let expected = smp::apic_ids().any(|named| named == id) && id != own;
        assert_eq!(
            starts,
            u8::from(expected),
            "starts of the vCPU with APIC id {id}"
        );
        vcpus += u32::from(expected);
    }
    println!("{} vCPUs", vcpus + 1);
}

const TICK: u8 = 32;
const TICKS: u32 = 20;
/// A tick is 1 ms when the local APIC's clock is KVM's.
const CYCLES: u32 = 1_000_000;

static TICKED: AtomicU32 = AtomicU32::new(0);

/// The local APIC's timer ticks while the vCPU sleeps, and while it computes in user mode.
fn timer() {
    interrupts::on(TICK, || {
        TICKED.fetch_add(1, Ordering::Relaxed);
    });
    apic::enable();
    apic::start_timer(TICK, CYCLES);
    while TICKED.load(Ordering::Relaxed) < TICKS {
        interrupts::wait();
    }
    println!("{TICKS} ticks asleep");
    interrupts::enable();
    user(|| {
        while TICKED.load(Ordering::Relaxed) < 2 * TICKS {
            core::hint::spin_loop();
        }
    });
    interrupts::disable();
    apic::stop_timer();
    println!("{TICKS} ticks in user mode");
}
