//! The virtio devices behind the MMIO transport (VIRTIO 1.3, 4.2): with the drivers of the crate
//! `virtio-drivers`, which know nothing of this VMM, and with a driver that breaks the rules.

pub mod block;
pub mod console;
mod hal;
pub mod hostile;
pub mod net;
pub mod reboots;
mod registers;
pub mod rng;
pub mod vsock;

use core::num::ParseIntError;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use guest::{apic, interrupts, option};
use hal::GuestHal;
use registers::{DEVICE_ID, INTERRUPT_ACK, INTERRUPT_STATUS, MAGIC, Registers};
use virtio_drivers::transport::mmio::MmioTransport;

/// Device types (VIRTIO 1.3, 5).
const NET: u32 = 1;
const BLOCK: u32 = 2;
const CONSOLE: u32 = 3;
const RNG: u32 = 4;
const VSOCK: u32 = 19;

const VECTOR: u8 = 40;

/// A device that the machine has.
#[derive(Clone, Copy)]
struct Device {
    registers: Registers,
    gsi: u32,
}

/// The devices of a type, in the order of the command line: `virtio=0xADDRESS:GSI,...`.
fn devices(kind: u32) -> impl Iterator<Item = Device> {
    let list = option("virtio").expect("virtio=0xADDRESS:GSI,...");
    list.split(',').filter_map(move |text| {
        let device = parse(text).expect("virtio=0xADDRESS:GSI,...");
        let magic = device.registers.read(MAGIC);
        assert_eq!(magic, u32::from_le_bytes(*b"virt"), "the magic of {text}");
        (device.registers.read(DEVICE_ID) == kind).then_some(device)
    })
}

fn parse(text: &str) -> Result<Device, ParseIntError> {
    let (address, gsi) = text.split_once(':').unwrap_or((text, ""));
    let address = u64::from_str_radix(address.trim_start_matches("0x"), 16)?;
    Ok(Device {
        registers: Registers::new(address),
        gsi: gsi.parse()?,
    })
}

/// The first device of a type.
fn device(kind: u32) -> Device {
    let device = devices(kind).next();
    device.unwrap_or_else(|| panic!("no device of type {kind}"))
}

impl Device {
    /// The transport of `virtio-drivers`.
    fn transport(self) -> MmioTransport<'static> {
        self.registers.transport()
    }

    /// Lets interrupts of this device in, and of no other. The handler acknowledges and counts them.
    fn route(self) {
        INTERRUPTING.store(self.registers.address(), Ordering::Relaxed);
        interrupts::on(VECTOR, || {
            let registers = Registers::new(INTERRUPTING.load(Ordering::Relaxed));
            let reasons = registers.read(INTERRUPT_STATUS);
            registers.write(INTERRUPT_ACK, reasons);
            USED.fetch_add((reasons & 1) as usize, Ordering::Relaxed);
        });
        apic::enable();
        apic::route(self.gsi, VECTOR);
    }
}

static INTERRUPTING: AtomicU64 = AtomicU64::new(0);
/// Interrupts for used buffers.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Sleeps until an interrupt has told of used buffers, since the last call.
fn wait_for_interrupt() {
    while USED.swap(0, Ordering::Relaxed) == 0 {
        interrupts::wait();
    }
}
