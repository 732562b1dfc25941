//! ACPI sleep control, sleep status and reset registers (ACPI 6.5, sections 4.8.3.6 and 4.8.3.7).

use crate::bus::{ByteRegisters, Outcome};

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

/// Three one-byte registers: sleep control, sleep status, reset.
#[derive(Debug, Default)]
pub struct AcpiPower;

impl ByteRegisters for AcpiPower {
    fn read_byte(&self, _register: u8) -> u8 {
        // Sleep status: WAK_STS is never set, nothing wakes a machine that is off.
        0
    }

    fn write_byte(&self, register: u8, value: u8) -> Outcome {
        match register {
            0 if value & SLEEP_ENABLE != 0 && sleep_type(value) == S5 => Outcome::PowerOff,
            2 if value == RESET => Outcome::Reset,
            _ => Outcome::Continue,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BusDevice;

    #[test]
    fn only_an_enabled_s5_powers_off() {
        for value in 0..=u8::MAX {
            let off = value & SLEEP_ENABLE != 0 && (value >> 2) & 7 == 5;
            let expected = if off {
                Outcome::PowerOff
            } else {
                Outcome::Continue
            };
            assert_eq!(AcpiPower.write(0, &[value]), expected, "{value:#x}");
        }
    }

    #[test]
    fn the_reset_register_takes_one_value() {
        assert_eq!(AcpiPower.write(2, &[1]), Outcome::Reset);
        assert_eq!(AcpiPower.write(2, &[0]), Outcome::Continue);
        assert_eq!(AcpiPower.write(1, &[1]), Outcome::Continue);
    }
}
