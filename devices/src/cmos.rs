//! The MC146818 real-time clock and its CMOS memory (Motorola data sheet), in BCD and 24 hours.
//!
//! The guest reads the host's UTC time. What it writes to the time registers is ignored: the
//! host's clock is not the guest's to set.

use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::bus::{ByteRegisters, Outcome};
use crate::lock;
use crate::state::{CmosState, DeviceState, StateError};

/// Bit 7 of the index port masks NMIs on a PC; the rest selects a byte.
const INDEX_MASK: u8 = 0x7f;
/// Status B: 24-hour mode, BCD.
const STATUS_B: u8 = 0x02;
/// Status D: the battery is good, the time is valid.
const STATUS_D: u8 = 0x80;

#[derive(Debug)]
struct State {
    index: u8,
    memory: [u8; 128],
}

/// Ports 0x70 (index) and 0x71 (data).
#[derive(Debug)]
pub struct Cmos(Mutex<State>);

impl Default for Cmos {
    fn default() -> Self {
        Self(Mutex::new(State {
            index: 0,
            memory: [0; 128],
        }))
    }
}

/// A UTC date and time, each field as the clock counts it.
#[derive(Debug, PartialEq, Eq)]
struct DateTime {
    year: u64,
    month: u64,
    day: u64,
    /// 1 is Sunday.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl DateTime {
    /// From seconds since 1970, by the Gregorian calendar. Years are counted from March, so that
    /// the leap day is the last of its year, in eras of 400 years (146097 days).
    fn from_unix(seconds: u64) -> Self {
        let days = seconds / 86_400;
        let from_0000_march = days + 719_468;
        let (era, day_of_era) = (from_0000_march / 146_097, from_0000_march % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 {
            month_from_march + 3
        } else {
            month_from_march - 9
        };
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            weekday: (days + 4) % 7 + 1,
            hour: seconds / 3600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }
}

/// Two decimal digits as BCD.
fn bcd(value: u64) -> u8 {
    let digits = value % 100;
    u8::try_from(digits / 10 * 16 + digits % 10).unwrap_or_default()
}

fn register(index: u8, memory: &[u8; 128], now: &DateTime) -> u8 {
    match index {
        0x00 => bcd(now.second),
        0x02 => bcd(now.minute),
        0x04 => bcd(now.hour),
        0x06 => bcd(now.weekday),
        0x07 => bcd(now.day),
        0x08 => bcd(now.month),
        0x09 => bcd(now.year),
        0x32 => bcd(now.year / 100),
        // Status A and C: no update in progress, no interrupt pending.
        0x0a | 0x0c => 0,
        0x0b => STATUS_B,
        0x0d => STATUS_D,
        _ => memory.get(usize::from(index)).copied().unwrap_or_default(),
    }
}

impl ByteRegisters for Cmos {
    fn read_byte(&self, port: u8) -> u8 {
        if port != 1 {
            return 0xff;
        }
        // A host clock before 1970 reads as 1970.
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let state = lock(&self.0);
        register(
            state.index,
            &state.memory,
            &DateTime::from_unix(now.as_secs()),
        )
    }

    fn write_byte(&self, port: u8, value: u8) -> Outcome {
        let mut state = lock(&self.0);
        let index = usize::from(state.index);
        match port {
            0 => state.index = value & INDEX_MASK,
            _ => {
                if let Some(byte) = state.memory.get_mut(index) {
                    *byte = value;
                }
            }
        }
        Outcome::Continue
    }

    fn state(&self) -> DeviceState {
        let state = lock(&self.0);
        DeviceState::Cmos(CmosState {
            index: state.index,
            memory: state.memory.to_vec(),
        })
    }

    fn set_state(&self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Cmos(CmosState { index, memory }) = state else {
            return Err(StateError::Foreign);
        };
        let memory = memory.as_slice().try_into();
        *lock(&self.0) = State {
            index: index & INDEX_MASK,
            memory: memory.map_err(|_| StateError::Range("memory"))?,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BusDevice;

    fn date(seconds: u64) -> (u64, u64, u64, u64) {
        let DateTime {
            year,
            month,
            day,
            weekday,
            ..
        } = DateTime::from_unix(seconds);
        (year, month, day, weekday)
    }

    #[test]
    fn dates_are_right_around_leap_days_and_centuries() {
        assert_eq!(date(0), (1970, 1, 1, 5));
        assert_eq!(date(951_782_400), (2000, 2, 29, 3));
        assert_eq!(date(951_868_800), (2000, 3, 1, 4));
        assert_eq!(date(1_709_164_800), (2024, 2, 29, 5));
        assert_eq!(date(4_107_542_400), (2100, 3, 1, 2));
        assert_eq!(date(1_767_225_599), (2025, 12, 31, 4));
    }

    #[test]
    fn the_clock_reads_as_bcd() {
        let now = DateTime::from_unix(1_767_225_599);
        let read = |index| register(index, &[0; 128], &now);
        assert_eq!(
            [0, 2, 4, 7, 8, 9, 0x32].map(read),
            [0x59, 0x59, 0x23, 0x31, 0x12, 0x25, 0x20]
        );
        assert_eq!(read(0x0d), STATUS_D);
    }

    #[test]
    fn cmos_memory_keeps_what_is_written_and_the_time_is_not_settable() {
        let cmos = Cmos::default();
        for (index, value) in [(0x40, 0x12), (0x0f, 0x0a)] {
            let _ = cmos.write(0, &[index]);
            let _ = cmos.write(1, &[value]);
            let mut data = [0];
            cmos.read(1, &mut data);
            assert_eq!(data, [value]);
        }
        let _ = cmos.write(0, &[0x32, 0x99]);
        let mut data = [0];
        cmos.read(1, &mut data);
        assert_ne!(data, [0x99]);
    }
}
