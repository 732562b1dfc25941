//! The real-time clock of Android's emulator, which Linux knows as google,goldfish-rtc
//! (Documentation/devicetree/bindings/rtc/google,goldfish-rtc.yaml; the registers are those of its
//! driver, `drivers/rtc/rtc-goldfish.c`).

use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::bus::{BusDevice, Outcome};
use crate::lock;
use crate::state::{DeviceState, GoldfishRtcState, StateError};

/// Nanoseconds since 1970. Reading the low word keeps the high word of that moment for the next read;
/// writing the low word sets the clock, with the high word that was written before.
const TIME_LOW: u64 = 0x00;
const TIME_HIGH: u64 = 0x04;
/// When the alarm is due, and whether it interrupts.
const ALARM_LOW: u64 = 0x08;
const ALARM_HIGH: u64 = 0x0c;
const INTERRUPT_ENABLED: u64 = 0x10;

/// The halves of a register pair; see the constants.
#[derive(Debug, Default)]
struct State {
    /// What the guest's time is ahead of the host's, in nanoseconds, modulo 2^64.
    ahead: u64,
    time_high: u32,
    alarm: [u32; 2],
    interrupt_enabled: u32,
}

/// A clock that starts with the host's time. Its alarm is remembered and never rings. It has whole
/// words only: any other access reads zeros and writes nothing.
#[derive(Debug, Default)]
pub struct GoldfishRtc(Mutex<State>);

/// The host's time in nanoseconds since 1970; 64 bits last until 2554.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [[a, b, c, d], [e, f, g, h]].map(u32::from_le_bytes)
}

impl BusDevice for GoldfishRtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(word) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        let mut state = lock(&self.0);
        let value = match offset {
            TIME_LOW => {
                let [low, high] = halves(now().wrapping_add(state.ahead));
                state.time_high = high;
                low
            }
            TIME_HIGH => state.time_high,
            ALARM_LOW => state.alarm[0],
            ALARM_HIGH => state.alarm[1],
            INTERRUPT_ENABLED => state.interrupt_enabled,
            // That an alarm is set, among others: none ever is.
            _ => 0,
        };
        *word = value.to_le_bytes();
    }

    fn write(&self, offset: u64, data: &[u8]) -> Outcome {
        let Ok(word) = <[u8; 4]>::try_from(data) else {
            return Outcome::Continue;
        };
        let value = u32::from_le_bytes(word);
        let mut state = lock(&self.0);
        match offset {
            TIME_LOW => {
                let time = u64::from(state.time_high) << 32 | u64::from(value);
                state.ahead = time.wrapping_sub(now());
            }
            TIME_HIGH => state.time_high = value,
            ALARM_LOW => state.alarm[0] = value,
            ALARM_HIGH => state.alarm[1] = value,
            INTERRUPT_ENABLED => state.interrupt_enabled = value & 1,
            _ => {}
        }
        Outcome::Continue
    }

    fn save(&self) -> Option<DeviceState> {
        let State {
            ahead,
            time_high,
            alarm,
            interrupt_enabled,
        } = *lock(&self.0);
        Some(DeviceState::GoldfishRtc(GoldfishRtcState {
            ahead,
            time_high,
            alarm,
            interrupt_enabled,
        }))
    }

    fn load(&self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::GoldfishRtc(state) = *state else {
            return Err(StateError::Foreign);
        };
        let GoldfishRtcState {
            ahead,
            time_high,
            alarm,
            interrupt_enabled,
        } = state;
        *lock(&self.0) = State {
            ahead,
            time_high,
            alarm,
            interrupt_enabled: interrupt_enabled & 1,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn read(clock: &GoldfishRtc, register: u64) -> u32 {
        let mut data = [0; 4];
        clock.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    /// As Linux reads it, and sets it.
    fn time(clock: &GoldfishRtc) -> u64 {
        let low = u64::from(read(clock, TIME_LOW));
        u64::from(read(clock, TIME_HIGH)) << 32 | low
    }

    fn set(clock: &GoldfishRtc, time: u64) {
        let [low, high] = halves(time);
        let _ = clock.write(TIME_HIGH, &high.to_le_bytes());
        let _ = clock.write(TIME_LOW, &low.to_le_bytes());
    }

    #[test]
    fn the_guest_reads_the_host_s_time_and_may_set_its_own() {
        let clock = GoldfishRtc::default();
        assert!(time(&clock).abs_diff(now()) < SECOND);
        // Before and after the host's time, over the ends of the range.
        for wanted in [0, 1000 * SECOND, u64::MAX / 2, u64::MAX] {
            set(&clock, wanted);
            assert!(time(&clock).wrapping_sub(wanted) < SECOND, "{wanted}");
        }
    }

    #[test]
    fn a_time_is_read_as_of_one_moment() {
        let clock = GoldfishRtc::default();
        // The low word is about to wrap, and does in between.
        const BEFORE: u64 = 1_000_000;
        set(&clock, (7 << 32) - BEFORE);
        let low = read(&clock, TIME_LOW);
        let wrapped = now() + 2 * BEFORE;
        while now() < wrapped {}
        let of_low = if low > u32::MAX / 2 { 6 } else { 7 };
        assert_eq!(read(&clock, TIME_HIGH), of_low, "{low:#x}");
        assert_eq!(time(&clock) >> 32, 7);
    }

    #[test]
    fn an_alarm_is_remembered_and_never_due() {
        let clock = GoldfishRtc::default();
        for (register, value) in [(ALARM_HIGH, 1_u32), (ALARM_LOW, 2), (INTERRUPT_ENABLED, 1)] {
            let _ = clock.write(register, &value.to_le_bytes());
            assert_eq!(read(&clock, register), value);
        }
        // The alarm's status.
        assert_eq!(read(&clock, 0x18), 0);
    }

    #[test]
    fn r25_other_widths_and_alignments_are_legal() {
        let clock = GoldfishRtc::default();
        for offset in [0, 1, 4, 0x1c, 0x20, 0xffe, u64::MAX] {
            for len in [0, 1, 2, 3, 4, 8] {
                let _ = clock.write(offset, &vec![0xff; len]);
                let mut data = vec![0xff; len];
                clock.read(offset, &mut data);
                assert!(len == 4 || data.iter().all(|byte| *byte == 0));
            }
        }
    }
}
