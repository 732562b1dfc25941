//! The serial port: input by interrupts, and much output.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};

use guest::machine::{port_in, port_out};
use guest::serial::{DATA, FIFO, INTERRUPTS, MODEM, READY, STATUS, byte};
use guest::{apic, interrupts, option, ports, println, smp};

const COM1_GSI: u32 = 4;
const VECTOR: u8 = 36;
const LINE: usize = 4096;

static LINE_BYTES: [AtomicU8; LINE] = [const { AtomicU8::new(0) }; LINE];
static LINE_LEN: AtomicUsize = AtomicUsize::new(0);
static INTERRUPTED: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicBool = AtomicBool::new(false);

/// Echoes lines in upper case until one is `q`. Input is read in the interrupt handler only.
pub fn echo() {
    interrupts::on(VECTOR, receive);
    apic::enable();
    apic::route(COM1_GSI, VECTOR);
    port_out(FIFO, 0x01);
    port_out(MODEM, 0x0b); // DTR, RTS, OUT2: the interrupt line is connected
    port_out(INTERRUPTS, 0x01); // received data
    println!("ready");
    while !DONE.load(Ordering::Relaxed) {
        interrupts::wait();
    }
    port_out(INTERRUPTS, 0);
    assert_ne!(INTERRUPTED.load(Ordering::Relaxed), 0);
}

/// Starts the vCPU with the highest APIC id by the interrupts of the serial port.
pub fn start_last() {
    let last = smp::apic_ids().max().expect("no vCPU");
    let started = smp::start_by_line(last, COM1_GSI, || {
        port_out(MODEM, 0x0b);
        port_out(INTERRUPTS, 0x02); // the transmitter is empty
        byte(b'.');
        port_out(INTERRUPTS, 0);
    });
    byte(b'\n');
    for (id, starts) in (0..).zip(started) {
        assert_eq!(starts, u8::from(id == last & 0xff), "starts of {id}");
    }
    println!("vCPU {last} has started");
}

fn receive() {
    INTERRUPTED.fetch_add(1, Ordering::Relaxed);
    while port_in(STATUS) & READY != 0 {
        match port_in(DATA) {
            b'\n' => end_of_line(),
            other => {
                let len = LINE_LEN.fetch_add(1, Ordering::Relaxed);
                LINE_BYTES[len].store(other, Ordering::Relaxed);
            }
        }
    }
}

fn end_of_line() {
    let line = &LINE_BYTES[..LINE_LEN.swap(0, Ordering::Relaxed)];
    if let [only] = line
        && only.load(Ordering::Relaxed) == b'q'
    {
        DONE.store(true, Ordering::Relaxed);
        return;
    }
    for character in line {
        byte(character.load(Ordering::Relaxed).to_ascii_uppercase());
    }
    byte(b'\n');
}

/// Prints lines of 64 bytes, 1 MiB or `bytes=N` in all, as fast as it can.
pub fn chatter() {
    const TEXT: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.\n";
    let bytes = option("bytes").map_or(1 << 20, |text| text.parse().expect("bytes=NUMBER"));
    for _ in 0..bytes / TEXT.len() {
        ports::rep_out8(DATA, TEXT);
    }
}
