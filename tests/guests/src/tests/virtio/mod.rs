//! The virtio devices: with the drivers of the crate `virtio-drivers`, which know nothing of this VMM,
//! behind both transports, and with drivers that break the rules.

pub mod block;
mod carrier;
pub mod console;
mod hal;
pub mod hostile;
pub mod net;
mod pci;
pub mod reboots;
mod registers;
pub mod rng;
pub mod vsock;

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use carrier::Carrier;
use guest::{apic, interrupts, option};
use hal::GuestHal;
use pci::Function;
use registers::{DEVICE_ID, INTERRUPT_ACK, INTERRUPT_STATUS, MAGIC, Registers};

/// Device types (VIRTIO 1.3, 5).
const NET: u32 = 1;
const BLOCK: u32 = 2;
const CONSOLE: u32 = 3;
const RNG: u32 = 4;
const VSOCK: u32 = 19;

const VECTOR: u8 = 40;

/// A device that the machine has.
#[derive(Clone, Copy)]
enum Device {
    Mmio { registers: Registers, gsi: u32 },
    Pci(Function),
}

/// How the host says where the devices are.
const PLACES: &str = "virtio=0xADDRESS:GSI,... or virtio=pci";

/// The devices of a type, in the order of the machine.
fn devices(kind: u32) -> impl Iterator<Item = Device> {
    let list = option("virtio").expect(PLACES);
    let on_pci = list == "pci";
    let functions = on_pci.then(|| pci::functions(kind)).into_iter().flatten();
    let places = (!on_pci).then(|| list.split(',')).into_iter().flatten();
    let registers = places.filter_map(move |text| {
        let (registers, gsi) = parse(text).expect(PLACES);
        let magic = registers.read(MAGIC);
        assert_eq!(magic, u32::from_le_bytes(*b"virt"), "the magic of {text}");
        (registers.read(DEVICE_ID) == kind).then_some(Device::Mmio { registers, gsi })
    });
    functions.map(Device::Pci).chain(registers)
}

fn parse(text: &str) -> Option<(Registers, u32)> {
    let (address, gsi) = text.split_once(':')?;
    let address = u64::from_str_radix(address.strip_prefix("0x")?, 16).ok()?;
    Some((Registers::new(address), gsi.parse().ok()?))
}

/// The first device of a type.
fn device(kind: u32) -> Device {
    let device = devices(kind).next();
    device.unwrap_or_else(|| panic!("no device of type {kind}"))
}

impl Device {
    /// The transport that drivers of `virtio-drivers` take.
    fn transport(self) -> Carrier {
        match self {
            Self::Mmio { registers, .. } => Carrier {
                inner: registers.transport().into(),
                common: None,
            },
            Self::Pci(function) => Carrier {
                inner: function.transport().into(),
                common: Some(function.common()),
            },
        }
    }

    /// Lets interrupts of this device in, and of no other. The handler acknowledges and counts them.
    fn route(self) {
        apic::enable();
        match self {
            Self::Mmio { registers, gsi } => {
                INTERRUPTING.store(registers.address(), Ordering::Relaxed);
                interrupts::on(VECTOR, || {
                    let registers = Registers::new(INTERRUPTING.load(Ordering::Relaxed));
                    let reasons = registers.read(INTERRUPT_STATUS);
                    registers.write(INTERRUPT_ACK, reasons);
                    USED.fetch_add((reasons & 1) as usize, Ordering::Relaxed);
                });
                apic::route(gsi, VECTOR);
            }
            Self::Pci(function) => {
                interrupts::on(VECTOR, || {
                    USED.fetch_add(1, Ordering::Relaxed);
                });
                function.route(VECTOR);
            }
        }
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
