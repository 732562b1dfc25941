//! What a micro-guest stands on: long mode, exceptions, interrupts, a way into user mode, the
//! serial port, and an end that the test can see.
//!
//! A guest is a program with `guest::entry!(main)`. It runs at CPL0 with interrupts off, every
//! line of the PIC masked and the first 4 GiB mapped one to one. When `main` returns, or by
//! [`exit`], it prints `EXIT <code>` and powers off through ACPI; a failed `assert!` is `EXIT 1`,
//! an exception `EXIT 101`.
//!
//! CPL0 may be slow where the tests run (see [`user`]); SSE and floating point are not set up.

#![no_std]

#[path = "../../../arch/x86_64/hello/acpi.rs"]
pub mod acpi;
pub mod apic;
mod descriptors;
mod entry;
pub mod interrupts;
pub mod irq;
#[path = "../../../arch/x86_64/hello/machine.rs"]
pub mod machine;
mod mp;
pub mod paging;
pub mod ports;
pub mod serial;
pub mod smp;
#[path = "../../../arch/x86_64/hello/start_info.rs"]
pub mod start_info;
mod user;

use core::sync::atomic::{AtomicU64, Ordering};

use start_info::StartInfo;
pub use user::user;

/// SLP_EN of the sleep control register (ACPI 6.5, 4.8.3.7); SLP_TYP starts at bit 2.
const SLEEP_ENABLE: u8 = 1 << 5;

/// Where devices have their registers, all of it mapped uncached.
pub const DEVICES: core::ops::Range<u64> = machine::DEVICES;

static START_INFO: AtomicU64 = AtomicU64::new(0);

/// Names the function that is the guest: `fn main()`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_main() {
            let main: fn() = $main;
            main()
        }
    };
}

unsafe extern "Rust" {
    safe fn guest_main();
}

/// Called by the entry code with the address of `hvm_start_info`.
extern "C" fn start(start_info: u64) -> ! {
    START_INFO.store(start_info, Ordering::Relaxed);
    apic::mask_pic();
    descriptors::load();
    guest_main();
    exit(0)
}

/// What the VMM said about the machine.
pub fn info() -> StartInfo {
    StartInfo::read(START_INFO.load(Ordering::Relaxed)).expect("no hvm_start_info")
}

/// The value of `name=value` on the command line.
pub fn option(name: &str) -> Option<&'static str> {
    options(name).next()
}

/// The same for an option that may stand there several times.
pub fn options(name: &str) -> impl Iterator<Item = &'static str> {
    let cmdline = core::str::from_utf8(info().cmdline).expect("the command line is not UTF-8");
    cmdline
        .split(' ')
        .filter_map(move |word| word.strip_prefix(name)?.strip_prefix('='))
}

/// Where the configuration space of PCI is (PCI Firmware Specification 3.3, 4.1.2).
pub fn ecam() -> u64 {
    let mcfg = acpi::find(info().rsdp, b"MCFG").expect("no MCFG");
    machine::u64_at(mcfg, 44).expect("a whole table")
}

/// Ends the guest: prints `EXIT <code>` and powers off. Works in user mode too.
pub fn exit(code: u8) -> ! {
    println!("EXIT {code}");
    let fadt = acpi::find(info().rsdp, b"FACP");
    let register = fadt.and_then(|fadt| Some((acpi::sleep_control(fadt)?, acpi::s5_type(fadt)?)));
    match register {
        Some(((true, port), s5)) => machine::port_out(port as u16, SLEEP_ENABLE | s5 << 2),
        Some(((false, address), s5)) => machine::write(address, SLEEP_ENABLE | s5 << 2),
        None => println!("no sleep control register"),
    }
    println!("the power is still on");
    loop {
        core::hint::spin_loop();
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    println!("\n{info}");
    exit(1)
}
