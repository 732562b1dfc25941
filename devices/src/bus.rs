//! The bus: which device serves an address.
//!
//! It is built once and then frozen, so a lookup takes no lock. The guest chooses every address,
//! width and alignment; all of them are legal. What no device serves reads as all ones and
//! swallows writes, as on a PC's bus.

use std::fmt::Debug;
use std::sync::Arc;

use crate::state::{DeviceState, StateError};

/// What a register write means for the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The guest goes on.
    Continue,
    /// The guest powered the machine off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel says that it has panicked.
    Panic,
}

/// A device on the bus. Offsets are relative to its first register; the bus never passes an access
/// that leaves the device's range.
pub trait BusDevice: Debug + Send + Sync {
    /// Fills `data` from the registers at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` to the registers at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> Outcome;

    /// What of it goes on in another machine. `None`: it cannot be saved, and so no machine that has it can.
    fn save(&self) -> Option<DeviceState> {
        None
    }

    /// Makes a new device what the saved one was; it raises the interrupts that were pending.
    ///
    /// # Errors
    /// When it is not the state of such a device. Nothing has changed then.
    fn load(&self, state: &DeviceState) -> Result<(), StateError> {
        let _ = state;
        Err(StateError::Foreign)
    }
}

/// A device and its range.
#[derive(Debug, Clone)]
pub struct BusEntry {
    /// The first address.
    pub base: u64,
    /// The length in bytes.
    pub len: u64,
    /// The device.
    pub device: Arc<dyn BusDevice>,
}

/// Why a set of ranges is no bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range is empty or leaves the address space.
    #[error("a device range at {base:#x} with {len:#x} bytes is empty or wraps")]
    Range {
        /// The first address.
        base: u64,
        /// The length in bytes.
        len: u64,
    },
    /// Two ranges share an address.
    #[error("two devices overlap at {0:#x}")]
    Overlap(u64),
}

/// A frozen set of devices in one address space.
#[derive(Debug, Default)]
pub struct Bus(Vec<BusEntry>);

impl Bus {
    /// Freezes a set of devices.
    ///
    /// # Errors
    /// When a range is empty, wraps or overlaps another.
    pub fn new(mut entries: Vec<BusEntry>) -> Result<Self, BusError> {
        entries.sort_unstable_by_key(|entry| entry.base);
        let mut free_from = 0;
        for &BusEntry { base, len, .. } in &entries {
            let end = base.checked_add(len).filter(|_| len > 0);
            let end = end.ok_or(BusError::Range { base, len })?;
            if base < free_from {
                return Err(BusError::Overlap(base));
            }
            free_from = end;
        }
        Ok(Self(entries))
    }

    /// All devices, by their addresses.
    #[must_use]
    pub fn entries(&self) -> &[BusEntry] {
        &self.0
    }

    /// The device at an address, the offset in it, and how many bytes it has from there on.
    fn find(&self, address: u64) -> Option<(&dyn BusDevice, u64, u64)> {
        let after = self.0.partition_point(|entry| entry.base <= address);
        let entry = self.0.get(after.checked_sub(1)?)?;
        let offset = address - entry.base;
        (offset < entry.len).then(|| (&*entry.device, offset, entry.len - offset))
    }

    /// The part of an access that the device at its address serves; the rest is unmapped.
    fn clip(len: usize, available: u64) -> usize {
        usize::try_from(available).map_or(len, |available| len.min(available))
    }

    /// Reads `data.len()` bytes.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        let (device, served) = match self.find(address) {
            Some((device, offset, available)) => (Some((device, offset)), available),
            None => (None, 0),
        };
        let (inside, outside) = data.split_at_mut(Self::clip(data.len(), served));
        outside.fill(0xff);
        if let Some((device, offset)) = device
            && !inside.is_empty()
        {
            device.read(offset, inside);
        }
    }

    /// Writes `data`.
    pub fn write(&self, address: u64, data: &[u8]) -> Outcome {
        match self.find(address) {
            Some((device, offset, available)) if !data.is_empty() => {
                let (inside, _) = data.split_at(Self::clip(data.len(), available));
                device.write(offset, inside)
            }
            _ => Outcome::Continue,
        }
    }
}

/// A device whose registers are one byte wide. Wider accesses touch consecutive registers, lowest
/// first, as an ISA bridge splits them.
pub(crate) trait ByteRegisters: Debug + Send + Sync {
    fn read_byte(&self, register: u8) -> u8;
    fn write_byte(&self, register: u8, value: u8) -> Outcome;
    /// As [`BusDevice::save`].
    fn state(&self) -> DeviceState;
    /// As [`BusDevice::load`].
    fn set_state(&self, state: &DeviceState) -> Result<(), StateError>;
}

fn registers(offset: u64) -> impl Iterator<Item = u8> {
    (offset..).map(|register| u8::try_from(register).unwrap_or(u8::MAX))
}

impl<T: ByteRegisters> BusDevice for T {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, register) in data.iter_mut().zip(registers(offset)) {
            *byte = self.read_byte(register);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Outcome {
        for (byte, register) in data.iter().zip(registers(offset)) {
            let outcome = self.write_byte(register, *byte);
            if outcome != Outcome::Continue {
                return outcome;
            }
        }
        Outcome::Continue
    }

    fn save(&self) -> Option<DeviceState> {
        Some(self.state())
    }

    fn load(&self, state: &DeviceState) -> Result<(), StateError> {
        self.set_state(state)
    }
}

/// Reads a register that is a word, at a byte `offset` that may lie inside it: a narrower or
/// misaligned access sees that part of it, a wider one zeros behind it.
pub(crate) fn read_word(word: u32, offset: u64, data: &mut [u8]) {
    let skipped = usize::from(offset.to_le_bytes()[0] & 3);
    let word = word.to_le_bytes();
    let bytes = word.iter().skip(skipped).chain(std::iter::repeat(&0));
    for (to, from) in data.iter_mut().zip(bytes) {
        *to = *from;
    }
}

/// The word that such an access writes: zeros where it has nothing.
pub(crate) fn written_word(offset: u64, data: &[u8]) -> u32 {
    let mut word = [0; 4];
    let skipped = usize::from(offset.to_le_bytes()[0] & 3);
    for (to, from) in word.iter_mut().skip(skipped).zip(data) {
        *to = *from;
    }
    u32::from_le_bytes(word)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<(u64, usize)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(0);
            self.0.lock().unwrap().push((offset, data.len()));
        }

        fn write(&self, offset: u64, data: &[u8]) -> Outcome {
            self.0.lock().unwrap().push((offset, data.len()));
            Outcome::PowerOff
        }
    }

    fn entry(base: u64, len: u64) -> BusEntry {
        BusEntry {
            base,
            len,
            device: Arc::new(Recorder::default()),
        }
    }

    #[test]
    fn ranges_must_be_disjoint_and_inside_the_address_space() {
        assert!(Bus::new(vec![entry(8, 8), entry(0, 8)]).is_ok());
        assert_eq!(
            Bus::new(vec![entry(7, 8), entry(0, 8)]).unwrap_err(),
            BusError::Overlap(7)
        );
        assert!(matches!(
            Bus::new(vec![entry(1, 0)]),
            Err(BusError::Range { .. })
        ));
        assert!(matches!(
            Bus::new(vec![entry(2, u64::MAX)]),
            Err(BusError::Range { .. })
        ));
    }

    proptest! {
        #[test]
        fn r25_any_access_stays_inside_the_device_and_reads_ones_outside(
            address in prop_oneof![0u64..64, any::<u64>()],
            len in 0usize..64,
        ) {
            let device = Arc::new(Recorder::default());
            let bus = Bus::new(vec![
                BusEntry { base: 16, len: 8, device: device.clone() },
                BusEntry { base: u64::MAX - 8, len: 8, device: device.clone() },
            ]).unwrap();
            let mut data = vec![0x55; len];
            bus.read(address, &mut data);
            let _ = bus.write(address, &data);
            for (index, byte) in data.iter().enumerate() {
                let at = address.checked_add(index as u64);
                let base = [16, u64::MAX - 8].into_iter()
                    .find(|base| (*base..*base + 8).contains(&address));
                let inside = base.zip(at).is_some_and(|(base, at)| (base..base + 8).contains(&at));
                prop_assert_eq!(*byte, if inside { 0 } else { 0xff });
            }
            for (offset, len) in device.0.lock().unwrap().iter() {
                prop_assert!(*len > 0 && offset + *len as u64 <= 8);
            }
        }
    }
}
