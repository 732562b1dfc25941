//! The virtio devices: with the drivers of the crate `virtio-drivers`, which know nothing of this VMM,
//! behind both transports, and with drivers that break the rules.

#[cfg(target_arch = "x86_64")]
pub mod balloon;
pub mod block;
mod carrier;
#[cfg(target_arch = "x86_64")]
pub mod client;
pub mod console;
#[cfg(target_arch = "x86_64")]
pub mod fetch;
mod hal;
#[cfg(target_arch = "x86_64")]
pub mod hostile;
#[cfg(target_arch = "x86_64")]
pub mod jobs;
pub mod net;
// Some of it is for drivers that break the rules.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod pci;
#[cfg(target_arch = "x86_64")]
pub mod reboots;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod registers;
pub mod rng;
pub mod vsock;

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use carrier::Carrier;
use guest::{irq, option, options};
use hal::GuestHal;
use pci::Function;
use registers::{DEVICE_ID, INTERRUPT_ACK, INTERRUPT_STATUS, MAGIC, Registers};

/// Device types (VIRTIO 1.3, 5).
const NET: u32 = 1;
const BLOCK: u32 = 2;
const CONSOLE: u32 = 3;
const RNG: u32 = 4;
#[cfg(target_arch = "x86_64")]
const BALLOON: u32 = 5;
const VSOCK: u32 = 19;

/// A device that the machine has.
#[derive(Clone, Copy)]
enum Device {
    Mmio { registers: Registers, gsi: u32 },
    Pci(Function),
}

/// How the host says where the devices are; as `virtio=cmdline` when it says nothing.
const PLACES: &str = "virtio=0xADDRESS:GSI,..., virtio=pci or virtio=cmdline";
/// Where a Linux guest without ACPI has them from: SIZE@ADDRESS:GSI (its drivers/virtio/virtio_mmio.c).
const LINUX_DEVICE: &str = "virtio_mmio.device";

/// The devices of a type, in the order of the machine.
fn devices(kind: u32) -> impl Iterator<Item = Device> {
    let list = option("virtio").unwrap_or("cmdline");
    let on_pci = list == "pci";
    let functions = on_pci.then(|| pci::functions(kind)).into_iter().flatten();
    let on_cmdline = list == "cmdline";
    let listed = !on_pci && !on_cmdline;
    let listed = listed.then(|| list.split(',')).into_iter().flatten();
    let named = on_cmdline.then(|| options(LINUX_DEVICE));
    let named = named.into_iter().flatten();
    let named = named.map(|text| text.split_once('@').expect(PLACES).1);
    let registers = listed.chain(named).filter_map(move |text| {
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

    /// Lets interrupts of this device in, and of no other. The handler counts them, and acknowledges
    /// those of a line. A guest that takes no messages polls.
    fn route(self) {
        match self {
            Self::Mmio { registers, gsi } => {
                INTERRUPTING.store(registers.address(), Ordering::Relaxed);
                irq::line(gsi, || {
                    let registers = Registers::new(INTERRUPTING.load(Ordering::Relaxed));
                    let reasons = registers.read(INTERRUPT_STATUS);
                    registers.write(INTERRUPT_ACK, reasons);
                    count((reasons & 1) as usize);
                });
            }
            Self::Pci(function) => match irq::message(|| count(1)) {
                Some((address, data)) => function.send(address, data),
                None => POLLING.store(true, Ordering::Relaxed),
            },
        }
    }
}

static INTERRUPTING: AtomicU64 = AtomicU64::new(0);
static POLLING: AtomicBool = AtomicBool::new(false);
/// Interrupts for used buffers.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Only handlers count, which do not interrupt each other.
fn count(interrupts: usize) {
    let before = USED.load(Ordering::Relaxed);
    USED.store(before + interrupts, Ordering::Relaxed);
}

/// How the driver hears of used buffers.
fn told() -> &'static str {
    match POLLING.load(Ordering::Relaxed) {
        true => "polled",
        false => "told by interrupts",
    }
}

/// Sleeps until an interrupt has told of used buffers, since the last call.
fn wait_for_interrupt() {
    if POLLING.load(Ordering::Relaxed) {
        return core::hint::spin_loop();
    }
    while USED.load(Ordering::Relaxed) == 0 {
        irq::wait();
    }
    USED.store(0, Ordering::Relaxed);
}
