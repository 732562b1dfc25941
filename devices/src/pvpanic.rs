//! The pvpanic device: how a guest says that it has panicked (QEMU docs/specs/pvpanic).

use crate::bus::{ByteRegisters, Outcome};
use crate::state::{DeviceState, StateError};

/// The guest has panicked, and ends. The other events of the specification are not offered.
const PANICKED: u8 = 1;

/// One register: it reads as the events that are known, and is written with those that happen.
#[derive(Debug, Default)]
pub struct Pvpanic;

impl ByteRegisters for Pvpanic {
    fn read_byte(&self, _register: u8) -> u8 {
        PANICKED
    }

    fn write_byte(&self, _register: u8, value: u8) -> Outcome {
        if value & PANICKED != 0 {
            Outcome::Panic
        } else {
            Outcome::Continue
        }
    }

    fn state(&self) -> DeviceState {
        DeviceState::Stateless {}
    }

    fn set_state(&self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::Stateless {} => Ok(()),
            _ => Err(StateError::Foreign),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BusDevice;

    #[test]
    fn only_a_panic_ends_the_guest() {
        let mut events = [0];
        Pvpanic.read(0, &mut events);
        assert_eq!(events, [1]);
        assert_eq!(Pvpanic.write(0, &[1]), Outcome::Panic);
        assert_eq!(Pvpanic.write(0, &[3]), Outcome::Panic);
        assert_eq!(Pvpanic.write(0, &[2]), Outcome::Continue);
    }
}
