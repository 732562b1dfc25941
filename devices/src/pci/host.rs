//! The host bridge, and the ways to the functions behind it: the memory-mapped configuration space
//! (ECAM), the configuration ports of a PC, and the windows in which the guest puts BARs.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Config, Header};
use crate::bus::{BusDevice, Outcome};
use crate::state::{DeviceState, PciPortsState, StateError};

/// Slots of a bus.
const SLOTS: usize = 32;
/// The generic PCI Express host bridge of QEMU (docs/specs/pci-ids of QEMU): drivers need nothing
/// from it but its class, a host bridge.
const HOST_BRIDGE: Header = Header {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: [0x06, 0x00, 0x00],
};

/// A function of the bus: function 0 of its slot.
pub trait PciFunction: Debug + Send + Sync {
    /// Reads its configuration space.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// Writes its configuration space.
    fn write_config(&self, offset: usize, data: &[u8]);

    /// Where its BAR answers now, and with how many bytes.
    fn bar(&self) -> Option<(u64, u64)>;

    /// Reads its BAR.
    fn read_bar(&self, offset: u64, data: &mut [u8]);

    /// Writes its BAR.
    fn write_bar(&self, offset: u64, data: &[u8]);
}

/// The bus with its functions.
#[derive(Debug)]
pub struct PciHost {
    bridge: Config,
    /// By slot; the first is the bridge's.
    functions: [Option<Arc<dyn PciFunction>>; SLOTS],
    /// The address register of the configuration ports.
    address: AtomicU32,
}

impl PciHost {
    /// A bus with these functions, each with its slot from 1 to 31.
    #[must_use]
    pub fn new(functions: impl IntoIterator<Item = (u8, Arc<dyn PciFunction>)>) -> Arc<Self> {
        let mut slots = [const { None }; SLOTS];
        for (slot, function) in functions {
            if let Some(place) = slots.get_mut(usize::from(slot)) {
                *place = Some(function);
            }
        }
        Arc::new(Self {
            bridge: Config::new(HOST_BRIDGE),
            functions: slots,
            address: AtomicU32::new(0),
        })
    }

    /// The memory-mapped configuration space, 4 KiB for each function.
    #[must_use]
    pub fn ecam(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Ecam(Arc::clone(self)))
    }

    /// The configuration ports: the address at 0, data at 4 (PCI Local Bus Specification 3.0,
    /// 3.2.2.3.2).
    #[must_use]
    pub fn ports(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Ports(Arc::clone(self)))
    }

    /// A window for BARs that begins at this address.
    #[must_use]
    pub fn window(self: &Arc<Self>, base: u64) -> Arc<dyn BusDevice> {
        Arc::new(Window(Arc::clone(self), base))
    }

    /// Reads a function's configuration space; there is nothing behind its end, and all ones where
    /// no function is.
    fn read_config(&self, slot: usize, function: usize, offset: usize, data: &mut [u8]) {
        match (slot, function, self.functions.get(slot)) {
            (0, 0, _) => self.bridge.read(offset, data),
            (_, 0, Some(Some(device))) => device.read_config(offset, data),
            _ => data.fill(0xff),
        }
    }

    fn write_config(&self, slot: usize, function: usize, offset: usize, data: &[u8]) {
        // The bridge has nothing to write.
        if let (0, Some(Some(device))) = (function, self.functions.get(slot)) {
            device.write_config(offset, data);
        }
    }

    /// The function that answers at an address, and the offset in its BAR.
    fn at(&self, address: u64) -> Option<(&dyn PciFunction, u64)> {
        self.functions.iter().flatten().find_map(|function| {
            let (base, len) = function.bar()?;
            let offset = address.checked_sub(base)?;
            (offset < len).then_some((&**function, offset))
        })
    }
}

/// Slot, function and register of an offset in the ECAM.
fn ecam_place(offset: u64) -> (usize, usize, usize) {
    let field = |shift: u32, bits: u32| {
        usize::try_from(offset >> shift & ((1 << bits) - 1)).unwrap_or_default()
    };
    (field(15, 5), field(12, 3), field(0, 12))
}

#[derive(Debug)]
struct Ecam(Arc<PciHost>);

impl BusDevice for Ecam {
    fn save(&self) -> Option<DeviceState> {
        Some(DeviceState::ById {})
    }

    fn load(&self, state: &DeviceState) -> Result<(), StateError> {
        state.is_by_id()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let (slot, function, register) = ecam_place(offset);
        self.0.read_config(slot, function, register, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Outcome {
        let (slot, function, register) = ecam_place(offset);
        self.0.write_config(slot, function, register, data);
        Outcome::Continue
    }
}

/// Bit of the address register: the data port reaches the bus.
const ENABLE: u32 = 1 << 31;
/// Where the data port begins.
const DATA: u64 = 4;
/// The reset register that chipsets have between the two, and its bit that resets.
const RESET: u64 = 1;
const RESET_CPU: u8 = 1 << 2;

#[derive(Debug)]
struct Ports(Arc<PciHost>);

impl Ports {
    /// Slot, function and register that the data port is connected to; the bus has to be the first.
    fn place(&self, offset: u64) -> Option<(usize, usize, usize)> {
        let address = self.0.address.load(Ordering::Relaxed);
        let byte = usize::try_from(offset.checked_sub(DATA)?).ok()?;
        let [low, middle, bus, _] = address.to_le_bytes();
        let register = usize::from(low & !3) + byte;
        let connected = address & ENABLE != 0 && bus == 0;
        connected.then_some((usize::from(middle >> 3), usize::from(middle & 7), register))
    }
}

impl BusDevice for Ports {
    fn save(&self) -> Option<DeviceState> {
        let address = self.0.address.load(Ordering::Relaxed);
        Some(DeviceState::PciPorts(PciPortsState { address }))
    }

    fn load(&self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::PciPorts(PciPortsState { address }) = *state else {
            return Err(StateError::Foreign);
        };
        self.0.address.store(address, Ordering::Relaxed);
        Ok(())
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((slot, function, register)) = self.place(offset) {
            self.0.read_config(slot, function, register, data);
        } else if let (0, Ok(data)) = (offset, <&mut [u8; 4]>::try_from(&mut *data)) {
            *data = self.0.address.load(Ordering::Relaxed).to_le_bytes();
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Outcome {
        if let Some((slot, function, register)) = self.place(offset) {
            self.0.write_config(slot, function, register, data);
        } else if let (0, Ok(data)) = (offset, <[u8; 4]>::try_from(data)) {
            self.0
                .address
                .store(u32::from_le_bytes(data), Ordering::Relaxed);
        } else if let (RESET, [value]) = (offset, data)
            && value & RESET_CPU != 0
        {
            return Outcome::Reset;
        }
        Outcome::Continue
    }
}

#[derive(Debug)]
struct Window(Arc<PciHost>, u64);

impl BusDevice for Window {
    fn save(&self) -> Option<DeviceState> {
        Some(DeviceState::ById {})
    }

    fn load(&self, state: &DeviceState) -> Result<(), StateError> {
        state.is_by_id()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.0.at(self.1.saturating_add(offset)) {
            Some((function, offset)) => function.read_bar(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Outcome {
        if let Some((function, offset)) = self.0.at(self.1.saturating_add(offset)) {
            function.write_bar(offset, data);
        }
        Outcome::Continue
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// What was written: to the BAR or not, offset, bytes.
    type Written = Vec<(bool, u64, Vec<u8>)>;

    #[derive(Debug, Default)]
    struct Recorder(Mutex<Written>);

    impl PciFunction for Recorder {
        fn read_config(&self, offset: usize, data: &mut [u8]) {
            data.fill(u8::try_from(offset & 0xff).unwrap());
        }

        fn write_config(&self, offset: usize, data: &[u8]) {
            let call = (false, offset as u64, data.to_vec());
            self.0.lock().unwrap().push(call);
        }

        fn bar(&self) -> Option<(u64, u64)> {
            Some((0xc000_8000, 0x1000))
        }

        fn read_bar(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset & 0xff).unwrap());
        }

        fn write_bar(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((true, offset, data.to_vec()));
        }
    }

    fn host() -> (Arc<PciHost>, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        let function: Arc<dyn PciFunction> = recorder.clone();
        (PciHost::new([(3, function)]), recorder)
    }

    fn read<const N: usize>(device: &dyn BusDevice, offset: u64) -> [u8; N] {
        let mut data = [0xaa; N];
        device.read(offset, &mut data);
        data
    }

    fn write(device: &dyn BusDevice, offset: u64, data: &[u8]) {
        assert_eq!(device.write(offset, data), Outcome::Continue);
    }

    #[test]
    fn the_memory_mapped_space_has_4_kib_for_each_function() {
        let (host, recorder) = host();
        let ecam = host.ecam();
        assert_eq!(read(&*ecam, 0), [0x36, 0x1b, 0x08, 0x00]);
        assert_eq!(read(&*ecam, 0x0a), [0x00, 0x06], "a host bridge");
        assert_eq!(read(&*ecam, (3 << 15) + 0x44), [0x44]);
        for absent in [1 << 12, 2 << 15, (3 << 15) + (1 << 12), 31 << 15] {
            assert_eq!(read(&*ecam, absent), [0xff; 4], "{absent:#x}");
            write(&*ecam, absent, &[0; 4]);
        }
        write(&*ecam, (3 << 15) + 0x10, &[1, 2]);
        write(&*ecam, 0, &[0; 4]);
        assert_eq!(*recorder.0.lock().unwrap(), [(false, 0x10, vec![1, 2])]);
        assert_eq!(read(&*ecam, 0), [0x36, 0x1b], "the bridge stays");
    }

    #[test]
    fn the_ports_reach_the_same_functions() {
        let (host, recorder) = host();
        let ports = host.ports();
        assert_eq!(read(&*ports, 4), [0xff; 4], "switched off");
        let address = ENABLE | 3 << 11 | 0x44;
        write(&*ports, 0, &address.to_le_bytes());
        assert_eq!(read(&*ports, 0), address.to_le_bytes());
        assert_eq!(read(&*ports, 6), [0x46]);
        write(&*ports, 4, &[9]);
        // Only whole words change the address.
        write(&*ports, 0, &[0]);
        assert_eq!(read(&*ports, 4), [0x44]);
        for elsewhere in [ENABLE | 1 << 16, ENABLE | 4 << 11, 3 << 11] {
            write(&*ports, 0, &elsewhere.to_le_bytes());
            assert_eq!(read(&*ports, 4), [0xff; 2]);
            write(&*ports, 4, &[1]);
        }
        assert_eq!(*recorder.0.lock().unwrap(), [(false, 0x44, vec![9])]);
    }

    #[test]
    fn the_reset_register_resets() {
        let ports = host().0.ports();
        assert_eq!(ports.write(1, &[0x02]), Outcome::Continue);
        assert_eq!(ports.write(1, &[0x06]), Outcome::Reset);
    }

    #[test]
    fn a_window_finds_bars_where_they_are() {
        let (host, recorder) = host();
        let window = host.window(0xc000_0000);
        assert_eq!(read(&*window, 0x8010), [0x10; 2]);
        assert_eq!(read(&*window, 0x7fff), [0xff]);
        assert_eq!(read(&*window, 0x9000), [0xff]);
        write(&*window, 0x8020, &[7]);
        write(&*window, u64::MAX, &[7]);
        assert_eq!(*recorder.0.lock().unwrap(), [(true, 0x20, vec![7])]);
    }

    #[test]
    fn r25_accesses_of_any_width_at_any_place_are_legal() {
        let (host, _) = host();
        for (device, size) in [(host.ecam(), 1 << 20), (host.ports(), 8)] {
            for offset in (0..size).step_by(if size > 8 { 1021 } else { 1 }) {
                for width in 0..=8 {
                    let mut data = vec![0; width];
                    device.read(offset, &mut data);
                    let _ = device.write(offset, &data);
                }
            }
        }
    }
}
