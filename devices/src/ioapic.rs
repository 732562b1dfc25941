//! The I/O APIC (Intel 82093AA, document 290566-001), for machines whose interrupt chip in the kernel
//! has local APICs only.
//!
//! It decides nothing but what each line sends: a line of the machine is an eventfd that the host turns
//! into the pin's message, so that an interrupt does not pass here. Lines are pulses; a pin's trigger
//! mode and polarity are remembered and change nothing.

use std::fmt;
use std::sync::Mutex;

use crate::bus::{BusDevice, Outcome};
use crate::lock;
use crate::msi::Message;
use crate::state::{DeviceState, IoApicState, StateError};

/// The two registers: which of the others is meant, and its value (3.1).
const SELECT: u64 = 0;
const WINDOW: u64 = 0x10;
/// The registers behind them (3.2); two for each pin, from the first on.
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const FIRST_PIN: u8 = 0x10;

/// The version that the 82093AA has.
const VERSION_82093AA: u32 = 0x11;
/// The bits of the identification that a guest may set.
const ID_BITS: u32 = 0x0f00_0000;
/// A pin's low word: masked; what only the controller may change (delivery status, remote IRR).
const MASKED: u32 = 1 << 16;
const LOW_BITS: u32 = 0x0001_afff;
/// A pin's high word: bits 7:0 of the destination in bits 31:24, and its bits 14:8 in bits 23:17, for guests
/// that know of them (Linux arch/x86/include/asm/io_apic.h, `virt_destid_8_14`); others write zeros there.
const HIGH_BITS: u32 = 0xfffe_0000;

/// Where messages to local APICs go (Intel SDM volume 3, 11.11.1).
const LOCAL_APICS: u64 = 0xFEE0_0000;
/// Vector and delivery mode lie in a message's data as they do in the low word.
const VECTOR_AND_MODE: u32 = 0x7ff;
/// Bit of the low word: the destination is a logical one; and its place in a message's address.
const LOGICAL: u32 = 1 << 11;
const LOGICAL_ADDRESS: u64 = 1 << 2;
/// Both parts of the destination lie by so much lower in a message's address.
const DESTINATION_SHIFT: u32 = 12;

/// Tells the host what a write to the eventfd of a line sends from now on; `None`: nothing. Says whether
/// the host took it.
pub type Route = Box<dyn Fn(u32, Option<Message>) -> bool + Send + Sync>;

#[derive(Debug, Clone, Copy)]
struct Pin {
    low: u32,
    high: u32,
    /// What the host has been told.
    known: Option<Message>,
}

impl Pin {
    fn message(self) -> Option<Message> {
        if self.low & MASKED != 0 {
            return None;
        }
        let mut address = LOCAL_APICS | u64::from(self.high >> DESTINATION_SHIFT);
        if self.low & LOGICAL != 0 {
            address |= LOGICAL_ADDRESS;
        }
        Some(Message {
            address,
            data: self.low & VECTOR_AND_MODE,
        })
    }
}

impl Pin {
    /// Tells the host of a message that it does not know.
    fn tell(&mut self, line: u32, route: &Route) {
        let message = self.message();
        // What the host refused is told again with the next write.
        if message != self.known && route(line, message) {
            self.known = message;
        }
    }
}

#[derive(Debug)]
struct State {
    select: u8,
    id: u32,
    pins: Vec<Pin>,
}

/// The controller. It starts with every pin masked.
pub struct IoApic {
    state: Mutex<State>,
    route: Route,
}

impl fmt::Debug for IoApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoApic")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl IoApic {
    /// A controller with `pins` pins; line n is pin n.
    #[must_use]
    pub fn new(pins: u8, route: Route) -> Self {
        let pin = Pin {
            low: MASKED,
            high: 0,
            known: None,
        };
        Self {
            state: Mutex::new(State {
                select: ID,
                id: 0,
                pins: vec![pin; pins.into()],
            }),
            route,
        }
    }
}

impl State {
    fn register(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => self.id,
            VERSION => {
                // The field has eight bits, as the number of pins has.
                let last = self.pins.len().saturating_sub(1);
                VERSION_82093AA | u32::try_from(last).unwrap_or(0) << 16
            }
            select => {
                let word = select.checked_sub(FIRST_PIN);
                let pin = word.and_then(|word| self.pins.get(usize::from(word / 2)));
                match (pin, select % 2) {
                    (Some(pin), 0) => pin.low,
                    (Some(pin), _) => pin.high,
                    (None, _) => 0,
                }
            }
        }
    }

    /// Writes the selected register, and tells the host of a message that it does not know.
    fn set_register(&mut self, value: u32, route: &Route) {
        if self.select == ID {
            self.id = value & ID_BITS;
            return;
        }
        let Some(word) = self.select.checked_sub(FIRST_PIN) else {
            return;
        };
        let Some(pin) = self.pins.get_mut(usize::from(word / 2)) else {
            return;
        };
        if word.is_multiple_of(2) {
            pin.low = value & LOW_BITS;
        } else {
            pin.high = value & HIGH_BITS;
        }
        pin.tell((word / 2).into(), route);
    }
}

impl BusDevice for IoApic {
    /// Registers have 32 bits: what an access has more reads as zeros.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        let value = match offset {
            SELECT => state.select.into(),
            WINDOW => state.register(),
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    /// A narrow access writes zeros to the other bits.
    fn write(&self, offset: u64, data: &[u8]) -> Outcome {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u32::from_le_bytes(bytes);
        let mut state = lock(&self.state);
        match offset {
            SELECT => state.select = value.to_le_bytes()[0],
            // Under the lock: a later change must not be overtaken by this one.
            WINDOW => state.set_register(value, &self.route),
            _ => {}
        }
        Outcome::Continue
    }

    fn save(&self) -> Option<DeviceState> {
        let state = lock(&self.state);
        Some(DeviceState::IoApic(IoApicState {
            select: state.select,
            id: state.id,
            pins: state.pins.iter().map(|pin| (pin.low, pin.high)).collect(),
        }))
    }

    fn load(&self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::IoApic(IoApicState { select, id, pins }) = state else {
            return Err(StateError::Foreign);
        };
        let mut state = lock(&self.state);
        if pins.len() != state.pins.len() {
            return Err(StateError::Range("pins"));
        }
        (state.select, state.id) = (*select, id & ID_BITS);
        for ((line, pin), (low, high)) in (0..).zip(&mut state.pins).zip(pins) {
            (pin.low, pin.high) = (low & LOW_BITS, high & HIGH_BITS);
            pin.tell(line, &self.route);
            if pin.known != pin.message() {
                return Err(StateError::Host);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const PINS: u8 = 24;
    type Told = Arc<Mutex<Vec<(u32, Option<Message>)>>>;

    /// A host that refuses this vector.
    const REFUSED: u32 = 0xee;

    fn io_apic() -> (IoApic, Told) {
        let told = Told::default();
        let route = Arc::clone(&told);
        let route = Box::new(move |line, message: Option<Message>| {
            lock(&route).push((line, message));
            message.is_none_or(|message| message.data != REFUSED)
        });
        (IoApic::new(PINS, route), told)
    }

    fn write(chip: &IoApic, register: u8, value: u32) {
        let _ = chip.write(SELECT, &u32::from(register).to_le_bytes());
        let _ = chip.write(WINDOW, &value.to_le_bytes());
    }

    fn read(chip: &IoApic, register: u8) -> u32 {
        let _ = chip.write(SELECT, &[register]);
        let mut data = [0; 4];
        chip.read(WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_driver_finds_masked_pins_and_their_number() {
        let (chip, told) = io_apic();
        assert_eq!(read(&chip, VERSION), 0x0017_0011);
        for pin in 0..PINS {
            assert_eq!(read(&chip, FIRST_PIN + 2 * pin), MASKED);
            assert_eq!(read(&chip, FIRST_PIN + 2 * pin + 1), 0);
        }
        write(&chip, ID, u32::MAX);
        assert_eq!(
            (read(&chip, ID), read(&chip, ARBITRATION)),
            (ID_BITS, ID_BITS)
        );
        assert!(lock(&told).is_empty());
    }

    #[test]
    fn a_pin_sends_what_the_driver_wrote_once_it_is_unmasked() {
        let (chip, told) = io_apic();
        // Pin 4 to the APIC with id 3: vector 0x31, fixed, physical, edge.
        write(&chip, FIRST_PIN + 9, 0x0300_0000);
        assert!(lock(&told).is_empty(), "still masked");
        write(&chip, FIRST_PIN + 8, 0x31);
        // Lowest priority, to a logical destination.
        write(&chip, FIRST_PIN + 8, 0x0931);
        write(&chip, FIRST_PIN + 8, MASKED | 0x0931);
        // To the APIC with id 0x12c: bits 14:8 of it below bits 7:0. All other bits are reserved.
        write(&chip, FIRST_PIN + 9, 0x2c03_ffff);
        write(&chip, FIRST_PIN + 8, 0x31);
        let message = |address, data| Some(Message { address, data });
        assert_eq!(
            *lock(&told),
            [
                (4, message(0xfee0_3000, 0x31)),
                (4, message(0xfee0_3004, 0x131)),
                (4, None),
                (4, message(0xfee2_c020, 0x31))
            ]
        );
    }

    #[test]
    fn the_host_is_not_told_of_what_changes_no_message() {
        let (chip, told) = io_apic();
        write(&chip, FIRST_PIN, 0x40);
        assert_eq!(lock(&told).len(), 1);
        // The same again; level and low, which an edge does not have; read-only bits.
        for value in [0x40, 0xa040, 0x5040] {
            write(&chip, FIRST_PIN, value);
        }
        assert_eq!(lock(&told).len(), 1);
        assert_eq!(read(&chip, FIRST_PIN), 0x40, "status bits are the chip's");
        write(&chip, FIRST_PIN, 0xa040);
        assert_eq!(read(&chip, FIRST_PIN), 0xa040, "remembered");
    }

    #[test]
    fn what_the_host_refused_is_told_again() {
        let (chip, told) = io_apic();
        write(&chip, FIRST_PIN, REFUSED);
        write(&chip, FIRST_PIN, REFUSED);
        assert_eq!(lock(&told).len(), 2);
        // It still sends nothing, so there is nothing to take back.
        write(&chip, FIRST_PIN, MASKED | REFUSED);
        assert_eq!(lock(&told).len(), 2);
    }

    #[test]
    fn r10_registers_that_are_not_there_read_as_zero_and_write_nothing() {
        let (chip, told) = io_apic();
        for register in (0..=u8::MAX).filter(|register| {
            !(FIRST_PIN..FIRST_PIN + 2 * PINS).contains(register) && *register != ID
        }) {
            write(&chip, register, u32::MAX);
            let known = [VERSION, ARBITRATION].contains(&register);
            assert!(known || read(&chip, register) == 0, "{register:#x}");
        }
        assert!(lock(&told).is_empty());
        assert_eq!(read(&chip, VERSION), 0x0017_0011);
    }

    #[test]
    fn r25_other_widths_and_alignments_are_legal() {
        let (chip, _) = io_apic();
        for offset in [0, 1, 4, 0xf, 0x10, 0x11, 0x14, 0xfff, u64::MAX] {
            for len in [0, 1, 2, 3, 4, 8, 16] {
                let mut data = vec![0xff; len];
                let _ = chip.write(offset, &data);
                chip.read(offset, &mut data);
                if !matches!(offset, SELECT | WINDOW) {
                    assert_eq!(data, vec![0; len], "{len} bytes at {offset:#x}");
                }
            }
        }
    }
}
