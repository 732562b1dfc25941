//! The keyboard: its driver's first words, and Ctrl-Alt-Del by interrupts.

use core::sync::atomic::{AtomicU32, Ordering};

use guest::machine::{port_in, port_out};
use guest::{irq, println};

const GSI: u32 = 1;
const DATA: u16 = 0x60;
const COMMAND: u16 = 0x64;
const FULL: u8 = 1;
const READ_CONTROL: u8 = 0x20;
const WRITE_CONTROL: u8 = 0x60;
const INTERRUPT: u8 = 1;
const IDENTIFY: u8 = 0xf2;

/// Bytes that interrupts told of, the last four of them.
static TYPED: AtomicU32 = AtomicU32::new(0);

fn wait_and_read() -> u8 {
    while port_in(COMMAND) & FULL == 0 {}
    port_in(DATA)
}

pub fn run() {
    listen();
    println!("listening");
    loop {
        irq::wait();
    }
}

/// Finds the keyboard, and has the machine reset when Ctrl, Alt and Delete are down.
pub fn listen() {
    port_out(COMMAND, READ_CONTROL);
    let control = wait_and_read();
    port_out(DATA, IDENTIFY);
    let id = [wait_and_read(), wait_and_read(), wait_and_read()];
    println!("control {control:#x}, keyboard {id:02x?}");
    irq::line(GSI, || {
        let code = port_in(DATA);
        let typed = TYPED.load(Ordering::Relaxed) << 8 | u32::from(code);
        TYPED.store(typed, Ordering::Relaxed);
        // In the codes of set 1, Delete as an extended key.
        if typed == 0x1d38_e053 {
            println!("ctrl-alt-del");
            port_out(COMMAND, 0xfe);
        }
    });
    port_out(COMMAND, WRITE_CONTROL);
    port_out(DATA, control | INTERRUPT);
}
