//! The registers of the MMIO transport (VIRTIO 1.3, 4.2.2).

use core::ptr::{self, NonNull};

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

/// The registers of one device.
#[derive(Clone, Copy)]
pub struct Registers(u64);

impl Registers {
    /// `address` is one that the VMM's plan has for a device.
    pub fn new(address: u64) -> Self {
        assert!((3 << 30..4 << 30).contains(&address));
        Self(address)
    }

    pub fn address(self) -> u64 {
        self.0
    }

    pub fn read(self, register: u64) -> u32 {
        // SAFETY: a device's registers, mapped from the start and uncached; reading changes nothing.
        unsafe { ptr::read_volatile((self.0 + register) as *const u32) }
    }

    pub fn write(self, register: u64, value: u32) {
        // SAFETY: as for `read`. What the device then does to memory is for the callers to tell.
        unsafe { ptr::write_volatile((self.0 + register) as *mut u32, value) };
    }

    /// Resets the device.
    pub fn reset(self) {
        self.write(STATUS, 0);
        while self.read(STATUS) != 0 {}
    }

    /// The transport of `virtio-drivers`.
    pub fn transport(self) -> MmioTransport<'static> {
        let header = NonNull::new(self.0 as *mut VirtIOHeader).expect("an address");
        // SAFETY: the window of a device, which is there for ever.
        unsafe { MmioTransport::new(header, LEN as usize) }.expect("a virtio device")
    }
}
