//! The PCI bus as a driver finds it: its configuration space where the firmware says, devices by asking, registers and messages by capabilities.

use core::ptr;

use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::{
    CapabilityInfo, Command, ConfigurationAccess, DeviceFunction, PciRoot,
};

use super::GuestHal;

/// Vendor of virtio devices, and what their type is added to (VIRTIO 1.3, 4.1.2).
const VENDOR: u32 = 0x1af4;
const FIRST_ID: u32 = 0x1040;
/// Capabilities: of the vendor, for MSI-X.
pub const VENDOR_SPECIFIC: u8 = 0x09;
pub const MSIX: u8 = 0x11;
/// The type of virtio capability that says where the common configuration is, and words of it.
const COMMON: u16 = 1;
const CAPABILITY_BAR: u8 = 4;
const CAPABILITY_OFFSET: u8 = 8;
const MSIX_TABLE: u8 = 4;
/// In the first word of the MSI-X capability.
const MSIX_ENABLE: u32 = 1 << 31;
const BAR0: u8 = 0x10;

/// The memory-mapped configuration space of bus 0.
#[derive(Clone, Copy)]
pub struct Ecam(u64);

impl Ecam {
    pub fn find() -> Self {
        Self(guest::ecam())
    }

    pub fn address(self, function: DeviceFunction, register: u64) -> u64 {
        let place = u64::from(function.device) << 3 | u64::from(function.function);
        self.0 + (place << 12) + register
    }
}

impl ConfigurationAccess for Ecam {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        let address = self.address(function, register.into());
        // SAFETY: the configuration space, mapped from the start and uncached.
        unsafe { ptr::read_volatile(address as *const u32) }
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, data: u32) {
        let address = self.address(function, register.into());
        // SAFETY: the same.
        unsafe { ptr::write_volatile(address as *mut u32, data) };
    }

    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}

/// A virtio device on the bus.
#[derive(Clone, Copy)]
pub struct Function(pub DeviceFunction);

/// The virtio devices of a type, in the order of the bus.
pub fn functions(kind: u32) -> impl Iterator<Item = Function> {
    let functions = PciRoot::new(Ecam::find()).enumerate_bus(0);
    functions.filter_map(move |(place, found)| {
        let id = (u32::from(found.vendor_id), u32::from(found.device_id));
        (id == (VENDOR, FIRST_ID + kind)).then_some(Function(place))
    })
}

impl Function {
    /// The address of a register of its configuration space.
    pub fn config(self, register: u64) -> u64 {
        Ecam::find().address(self.0, register)
    }

    /// The place in the configuration space of its first capability that fits.
    pub fn capability(self, fits: impl Fn(&CapabilityInfo) -> bool) -> u64 {
        let found = PciRoot::new(Ecam::find()).capabilities(self.0).find(fits);
        found.expect("no such capability").offset.into()
    }

    pub fn bar(self, number: u32) -> u64 {
        let register = BAR0 + 4 * u8::try_from(number).expect("a BAR");
        u64::from(Ecam::find().read_word(self.0, register) & !0xf)
    }

    /// Lets the device answer and write to memory.
    pub fn enable(self) {
        let command = Command::MEMORY_SPACE | Command::BUS_MASTER;
        PciRoot::new(Ecam::find()).set_command(self.0, command);
    }

    /// Where the common configuration is.
    pub fn common(self) -> u64 {
        let ecam = Ecam::find();
        let root = PciRoot::new(ecam);
        let found = root.capabilities(self.0).find(|capability| {
            // Length and type of the structure.
            capability.id == VENDOR_SPECIFIC && capability.private_header >> 8 == COMMON
        });
        let place = found.expect("no common configuration").offset;
        let bar = ecam.read_word(self.0, place + CAPABILITY_BAR) & 0xff;
        self.bar(bar) + u64::from(ecam.read_word(self.0, place + CAPABILITY_OFFSET))
    }

    /// The transport of `virtio-drivers`.
    pub fn transport(self) -> PciTransport {
        self.enable();
        PciTransport::new::<GuestHal, _>(&mut PciRoot::new(Ecam::find()), self.0)
            .expect("a virtio device")
    }

    /// Has the device's first message sent, and sent as this.
    pub fn send(self, address: u32, data: u32) {
        self.enable();
        let mut ecam = Ecam::find();
        let root = PciRoot::new(ecam);
        let found = root.capabilities(self.0).find(|found| found.id == MSIX);
        let place = found.expect("no MSI-X").offset;
        let table = ecam.read_word(self.0, place + MSIX_TABLE);
        let entry = self.bar(table & 7) + u64::from(table & !7);
        let words = [address, 0, data, 0];
        for (word, address) in words.into_iter().zip((entry..).step_by(4)) {
            // SAFETY: the table of this device, mapped and uncached.
            unsafe { ptr::write_volatile(address as *mut u32, word) };
        }
        let control = ecam.read_word(self.0, place);
        ecam.write_word(self.0, place, control | MSIX_ENABLE);
    }
}
