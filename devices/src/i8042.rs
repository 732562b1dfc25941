//! The i8042 keyboard controller, as far as a reset through it needs it.

use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_superio::{I8042Device, Trigger};

use crate::bus::{ByteRegisters, Outcome};
use crate::lock;
use crate::state::{DeviceState, StateError};

/// The CPU's reset line.
#[derive(Debug, Default)]
struct ResetLine(AtomicBool);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// System control port B of a PC (0x61), between the controller's own: bit 5 is the output of the interval
/// timer's channel 2. Where there is no timer, a guest that waits for it finds it has ended.
const PORT_B: u8 = 1;
const TIMER_ENDED: u8 = 1 << 5;

/// Ports 0x60 (data) to 0x64 (command); command 0xfe resets.
#[derive(Debug)]
pub struct I8042(Mutex<I8042Device<ResetLine>>);

impl Default for I8042 {
    fn default() -> Self {
        Self(Mutex::new(I8042Device::new(ResetLine::default())))
    }
}

impl ByteRegisters for I8042 {
    fn read_byte(&self, register: u8) -> u8 {
        match register {
            PORT_B => TIMER_ENDED,
            _ => lock(&self.0).read(register),
        }
    }

    fn write_byte(&self, register: u8, value: u8) -> Outcome {
        let mut device = lock(&self.0);
        let Ok(()) = device.write(register, value);
        if device.reset_evt().0.swap(false, Ordering::Relaxed) {
            Outcome::Reset
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
    fn only_the_reset_command_at_the_command_port_resets() {
        let device = I8042::default();
        for register in 0..5 {
            for value in 0..=u8::MAX {
                let reset = register == 4 && value == 0xfe;
                let expected = if reset {
                    Outcome::Reset
                } else {
                    Outcome::Continue
                };
                assert_eq!(
                    device.write(register, &[value]),
                    expected,
                    "{register} {value:#x}"
                );
            }
        }
    }
}
