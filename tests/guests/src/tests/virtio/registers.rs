//! The registers of a device, by their places in the MMIO transport (VIRTIO 1.3, 4.2.2). Behind PCI
//! they are fields of the common configuration and other parts of BAR 0 (4.1.4).

use core::ptr::{self, NonNull};

use guest::DEVICES;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};

pub const MAGIC: u64 = 0x000;
pub const DEVICE_ID: u64 = 0x008;
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
pub const DRIVER_FEATURES: u64 = 0x020;
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
pub const QUEUE_SEL: u64 = 0x030;
pub const QUEUE_SIZE_MAX: u64 = 0x034;
pub const QUEUE_SIZE: u64 = 0x038;
pub const QUEUE_READY: u64 = 0x044;
pub const QUEUE_NOTIFY: u64 = 0x050;
pub const INTERRUPT_STATUS: u64 = 0x060;
pub const INTERRUPT_ACK: u64 = 0x064;
pub const STATUS: u64 = 0x070;
/// Where the descriptor table, the available and the used ring are: low halves; the high ones
/// follow.
pub const QUEUE_PLACES: [u64; 3] = [0x080, 0x090, 0x0a0];
/// Where the configuration space begins.
pub const CONFIG: u64 = 0x100;
/// The whole window.
pub const LEN: u64 = 0x1000;

/// Bits of the status.
pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;
pub const FAILED: u32 = 128;

/// Parts of the BAR, where the VMM has them.
pub const ISR_PART: u64 = 0x1000;
pub const DEVICE_PART: u64 = 0x2000;
pub const NOTIFY_PART: u64 = 0x3000;

/// The registers of one device.
#[derive(Clone, Copy)]
pub enum Registers {
    /// The address of the window.
    Mmio(u64),
    /// The address of BAR 0.
    Pci(u64),
}

/// Offset in the BAR and width of a register.
fn field(register: u64) -> (u64, u64) {
    match register {
        DEVICE_FEATURES_SEL => (0x00, 4),
        DRIVER_FEATURES_SEL => (0x08, 4),
        DRIVER_FEATURES => (0x0c, 4),
        STATUS => (0x14, 1),
        QUEUE_SEL => (0x16, 2),
        // The most is what is there before the driver writes.
        QUEUE_SIZE | QUEUE_SIZE_MAX => (0x18, 2),
        QUEUE_READY => (0x1c, 2),
        0x080 | 0x084 => (register - 0x080 + 0x20, 4),
        0x090 | 0x094 => (register - 0x090 + 0x28, 4),
        0x0a0 | 0x0a4 => (register - 0x0a0 + 0x30, 4),
        INTERRUPT_STATUS => (ISR_PART, 1),
        QUEUE_NOTIFY => (NOTIFY_PART, 2),
        CONFIG..LEN => (DEVICE_PART + register - CONFIG, 4),
        _ => panic!("there is no register {register:#x} behind PCI"),
    }
}

/// Reads a device's register of any width.
pub fn read<T: Copy>(address: u64) -> T {
    assert!(DEVICES.contains(&address));
    // SAFETY: no RAM, mapped from the start and uncached; reading changes no memory. Callers read
    // numbers.
    unsafe { ptr::read_volatile(address as *const T) }
}

/// Writes a device's register of any width.
pub fn write<T: Copy>(address: u64, value: T) {
    assert!(DEVICES.contains(&address));
    // SAFETY: as for `read`. What the device then does to memory is for the callers to tell.
    unsafe { ptr::write_volatile(address as *mut T, value) }
}

impl Registers {
    /// `address` is one that the VMM's plan has for a device.
    pub fn new(address: u64) -> Self {
        assert!(DEVICES.contains(&address));
        Self::Mmio(address)
    }

    pub fn is_pci(self) -> bool {
        matches!(self, Self::Pci(_))
    }

    pub fn address(self) -> u64 {
        match self {
            Self::Mmio(address) | Self::Pci(address) => address,
        }
    }

    pub fn read(self, register: u64) -> u32 {
        let bar = match self {
            Self::Mmio(address) => return read(address + register),
            Self::Pci(bar) => bar,
        };
        match field(register) {
            (offset, 1) => read::<u8>(bar + offset).into(),
            (offset, 2) => read::<u16>(bar + offset).into(),
            (offset, _) => read(bar + offset),
        }
    }

    /// Behind PCI a value that is too wide for a field is written over it and what follows, which
    /// no field may take.
    pub fn write(self, register: u64, value: u32) {
        let bar = match self {
            Self::Mmio(address) => return write(address + register, value),
            Self::Pci(bar) => bar,
        };
        match field(register) {
            (offset, 1) if value <= 0xff => write(bar + offset, value as u8),
            (NOTIFY_PART, _) => {
                // Each queue has a place of its own, and the page has some more.
                let place = NOTIFY_PART + 4 * u64::from(value & 0x3ff);
                write(bar + place, value as u16);
            }
            (offset, 2) if value <= 0xffff => write(bar + offset, value as u16),
            (offset, _) => write(bar + offset, value),
        }
    }

    /// Resets the device.
    pub fn reset(self) {
        self.write(STATUS, 0);
        while self.read(STATUS) != 0 {}
    }

    /// The transport of `virtio-drivers`, for a device behind MMIO.
    pub fn transport(self) -> MmioTransport<'static> {
        let header = NonNull::new(self.address() as *mut VirtIOHeader).expect("an address");
        // SAFETY: the window of a device, which is there for ever.
        unsafe { MmioTransport::new(header, LEN as usize) }.expect("a virtio device")
    }
}
