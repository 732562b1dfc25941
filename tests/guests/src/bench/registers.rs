//! The registers of a virtio-mmio device, version 2 (VIRTIO 1.3, 4.2.2).

use core::ptr;

use guest::{info, option};

const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_SIZE_MAX: u64 = 0x034;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const STATUS: u64 = 0x070;
/// Each is followed by its upper half.
const QUEUE_DESCRIPTORS: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;
const CONFIG: u64 = 0x100;

const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");
/// Status bits (2.1).
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;

/// A device's registers.
#[derive(Clone, Copy)]
pub struct Registers(u64);

impl Registers {
    fn read(self, register: u64) -> u32 {
        // SAFETY: the command line says that a device is there; below 4 GiB all is mapped.
        unsafe { ptr::read_volatile((self.0 + register) as *const u32) }
    }

    fn write(self, register: u64, value: u32) {
        // SAFETY: as for `read`; a device writes only the memory that its queues name.
        unsafe { ptr::write_volatile((self.0 + register) as *mut u32, value) };
    }

    fn write_address(self, register: u64, address: u64) {
        self.write(register, address as u32);
        self.write(register + 4, (address >> 32) as u32);
    }

    /// A 64-bit field of the device's configuration.
    pub fn config(self, offset: u64) -> u64 {
        let half = |offset| u64::from(self.read(CONFIG + offset));
        half(offset) | half(offset + 4) << 32
    }

    /// Resets the device and takes those of the features that it has; gives them.
    pub fn negotiate(self, wanted: u64) -> u64 {
        self.write(STATUS, 0);
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        let mut taken = 0;
        for half in 0..2 {
            self.write(DEVICE_FEATURES_SEL, half);
            let features = self.read(DEVICE_FEATURES) & (wanted >> (32 * half)) as u32;
            self.write(DRIVER_FEATURES_SEL, half);
            self.write(DRIVER_FEATURES, features);
            taken |= u64::from(features) << (32 * half);
        }
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert!(
            self.read(STATUS) & FEATURES_OK != 0,
            "the device does not take features {taken:#x}"
        );
        taken
    }

    /// The largest size of a queue.
    pub fn queue_size_max(self, queue: u32) -> u32 {
        self.write(QUEUE_SEL, queue);
        self.read(QUEUE_SIZE_MAX)
    }

    /// Sets up a queue and starts the device.
    pub fn start(self, queue: u32, size: u16, descriptors: u64, available: u64, used: u64) {
        self.write(QUEUE_SEL, queue);
        self.write(QUEUE_SIZE, size.into());
        self.write_address(QUEUE_DESCRIPTORS, descriptors);
        self.write_address(QUEUE_DRIVER, available);
        self.write_address(QUEUE_DEVICE, used);
        self.write(QUEUE_READY, 1);
        let all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        self.write(STATUS, all);
        assert_eq!(self.read(STATUS), all, "the device does not start");
    }

    /// Says that a queue has something new.
    pub fn notify(self, queue: u32) {
        self.write(QUEUE_NOTIFY, queue);
    }
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The first device of a type that the command line knows.
pub fn find(kind: u32) -> Registers {
    let ours = option("mmio").and_then(hex);
    let cmdline = core::str::from_utf8(info().cmdline).expect("the command line is not UTF-8");
    let linux = cmdline.split(' ').filter_map(|word| {
        let device = word.strip_prefix("virtio_mmio.device=")?;
        hex(device.split_once('@')?.1.split(':').next()?)
    });
    ours.into_iter()
        .chain(linux)
        .filter(|address| *address < 4 << 30)
        .map(Registers)
        .find(|device| {
            device.read(MAGIC) == MAGIC_VALUE
                && device.read(VERSION) == 2
                && device.read(DEVICE_ID) == kind
        })
        .expect("no mmio=0xADDRESS of such a virtio device")
}
