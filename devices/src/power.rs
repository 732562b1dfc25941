//! ACPI sleep control, sleep status and reset registers (ACPI 6.5, sections 4.8.3.6 and 4.8.3.7), and
//! the events of a generic event device (5.6.9) with the machine's power button.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::{ByteRegisters, Outcome};
use crate::state::{AcpiPowerState, DeviceState, StateError};

/// SLP_EN: the write takes effect.
const SLEEP_ENABLE: u8 = 1 << 5;
/// SLP_TYP, three bits from bit 2 on.
const fn sleep_type(value: u8) -> u8 {
    (value >> 2) & 7
}
/// The sleep type that the tables announce for S5, soft off.
const S5: u8 = 5;
/// The value that the tables announce for the reset register.
const RESET: u8 = 1;
/// The register of events, and the bits of the power button and of another generation ID.
const EVENTS: u8 = 3;
const POWER_BUTTON: u8 = 1;
const GENERATION: u8 = 2;

/// Asks a guest to power itself off.
pub trait PowerButton: Debug + Send + Sync {
    /// Presses the button.
    fn press(&self);

    /// Whether the guest has taken notice since.
    fn was_noticed(&self) -> bool;
}

/// Four one-byte registers: sleep control, sleep status, reset, and the events since it was last
/// read.
#[derive(Debug)]
pub struct AcpiPower {
    events: AtomicU8,
    line: EventFd,
}

impl AcpiPower {
    /// `line` is the interrupt, pulsed for an event.
    #[must_use]
    pub fn new(line: EventFd) -> Self {
        Self {
            events: AtomicU8::new(0),
            line,
        }
    }

    /// Tells the guest that its generation ID is another one.
    pub fn tell_generation(&self) {
        self.tell(GENERATION);
    }

    fn tell(&self, event: u8) {
        self.events.fetch_or(event, Ordering::SeqCst);
        // A full counter means that the interrupt is on its way.
        let _ = self.line.write(1);
    }
}

impl PowerButton for AcpiPower {
    fn press(&self) {
        self.tell(POWER_BUTTON);
    }

    fn was_noticed(&self) -> bool {
        self.events.load(Ordering::SeqCst) & POWER_BUTTON == 0
    }
}

impl ByteRegisters for AcpiPower {
    fn read_byte(&self, register: u8) -> u8 {
        match register {
            EVENTS => self.events.swap(0, Ordering::SeqCst),
            // Sleep status: WAK_STS is never set, nothing wakes a machine that is off.
            _ => 0,
        }
    }

    fn write_byte(&self, register: u8, value: u8) -> Outcome {
        match register {
            0 if value & SLEEP_ENABLE != 0 && sleep_type(value) == S5 => Outcome::PowerOff,
            2 if value == RESET => Outcome::Reset,
            _ => Outcome::Continue,
        }
    }

    fn state(&self) -> DeviceState {
        let events = self.events.load(Ordering::SeqCst);
        DeviceState::AcpiPower(AcpiPowerState { events })
    }

    /// An event that is there is told again: the interrupt may have been on its way. One too many does no harm.
    fn set_state(&self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::AcpiPower(AcpiPowerState { events }) = state else {
            return Err(StateError::Foreign);
        };
        if events & !(POWER_BUTTON | GENERATION) != 0 {
            return Err(StateError::Range("events"));
        }
        self.events.store(*events, Ordering::SeqCst);
        if *events != 0 {
            let _ = self.line.write(1);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

    use super::*;
    use crate::BusDevice;

    fn power() -> AcpiPower {
        AcpiPower::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap())
    }

    #[test]
    fn only_an_enabled_s5_powers_off() {
        for value in 0..=u8::MAX {
            let off = value & SLEEP_ENABLE != 0 && (value >> 2) & 7 == 5;
            let expected = if off {
                Outcome::PowerOff
            } else {
                Outcome::Continue
            };
            assert_eq!(power().write(0, &[value]), expected, "{value:#x}");
        }
    }

    #[test]
    fn the_reset_register_takes_one_value() {
        assert_eq!(power().write(2, &[1]), Outcome::Reset);
        assert_eq!(power().write(2, &[0]), Outcome::Continue);
        assert_eq!(power().write(1, &[1]), Outcome::Continue);
    }

    #[test]
    fn the_button_is_an_event_that_is_read_once() {
        let power = power();
        let events = || {
            let mut data = [0xaa];
            power.read(3, &mut data);
            data
        };
        assert_eq!(events(), [0]);
        power.press();
        power.press();
        assert!(!power.was_noticed());
        assert_eq!(power.line.read().unwrap(), 2);
        assert_eq!(events(), [1]);
        assert!(power.was_noticed());
        assert_eq!(events(), [0]);
        assert_eq!(power.write(3, &[0xff]), Outcome::Continue);
        assert_eq!(events(), [0], "the guest causes none");
        power.tell_generation();
        assert!(power.was_noticed(), "the button was not pressed");
        power.press();
        assert_eq!(events(), [3]);
    }
}
