//! The Arm PrimeCell real-time clock PL031 (DDI 0224), from vm-superio.

use std::fmt;
use std::sync::Mutex;

use vm_superio::Rtc;
use vm_superio::rtc_pl031::{NoEvents, RtcState};

use crate::bus::{BusDevice, Outcome};
use crate::lock;
use crate::state::{DeviceState, Pl031State, StateError};

/// The registers' space.
const REGISTERS: u64 = 0x1000;

/// A clock that starts with the host's time. Its alarm is remembered and never rings. It has whole
/// words only: any other access reads zeros and writes nothing.
#[derive(Default)]
pub struct Pl031(Mutex<Rtc<NoEvents>>);

impl fmt::Debug for Pl031 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pl031").finish_non_exhaustive()
    }
}

/// The offset of a whole word, which is all that the clock has.
fn word(offset: u64) -> Option<u16> {
    let aligned = offset < REGISTERS && offset.is_multiple_of(4);
    u16::try_from(offset).ok().filter(|_| aligned)
}

impl BusDevice for Pl031 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // vm-superio leaves the buffer alone where there is nothing to read.
        data.fill(0);
        if let (Some(offset), Ok(word)) = (word(offset), <&mut [u8; 4]>::try_from(data)) {
            lock(&self.0).read(offset, word);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Outcome {
        if let (Some(offset), Ok(word)) = (word(offset), <&[u8; 4]>::try_from(data)) {
            lock(&self.0).write(offset, word);
        }
        Outcome::Continue
    }

    fn save(&self) -> Option<DeviceState> {
        let RtcState {
            lr,
            offset: ahead,
            mr,
            imsc,
            ris,
        } = lock(&self.0).state();
        Some(DeviceState::Pl031(Pl031State {
            lr,
            ahead,
            mr,
            imsc,
            ris,
        }))
    }

    fn load(&self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Pl031(state) = *state else {
            return Err(StateError::Foreign);
        };
        let Pl031State {
            lr,
            ahead: offset,
            mr,
            imsc,
            ris,
        } = state;
        // It is added to the host's time, in 64 bits.
        if i32::try_from(offset).is_err() && u32::try_from(offset).is_err() {
            return Err(StateError::Range("ahead"));
        }
        let state = RtcState {
            lr,
            offset,
            mr,
            imsc,
            ris,
        };
        *lock(&self.0) = Rtc::from_state(&state, NoEvents);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    const DATA: u64 = 0;
    const LOAD: u64 = 8;

    fn read(clock: &Pl031, register: u64) -> u32 {
        let mut data = [0; 4];
        clock.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_guest_reads_the_host_s_time_and_may_set_its_own() {
        let clock = Pl031::default();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        assert!(u64::from(read(&clock, DATA)).abs_diff(now) <= 1);
        let _ = clock.write(LOAD, &1000u32.to_le_bytes());
        assert!(read(&clock, DATA).abs_diff(1000) <= 1);
    }

    #[test]
    fn drivers_recognise_the_cell() {
        let clock = Pl031::default();
        let ids: Vec<_> = (0..8).map(|n| read(&clock, 0xfe0 + 4 * n)).collect();
        assert_eq!(ids, [0x31, 0x10, 0x04, 0, 0x0d, 0xf0, 0x05, 0xb1]);
    }

    #[test]
    fn what_is_no_readable_register_reads_as_zero() {
        let clock = Pl031::default();
        for (offset, len) in [
            (0x1c, 4),
            (0x20, 4),
            (0xfdc, 4),
            (0x1000, 4),
            (1, 4),
            (0, 2),
            (0, 8),
        ] {
            let mut data = vec![0xff; len];
            clock.read(offset, &mut data);
            assert_eq!(data, vec![0; len], "{len} bytes at {offset:#x}");
        }
    }

    #[test]
    fn r25_other_widths_and_alignments_are_legal() {
        let clock = Pl031::default();
        for offset in [0, 1, 4, 0xffc, 0xffe, 0x1000, u64::MAX] {
            for len in [0, 1, 2, 3, 4, 8] {
                clock.read(offset, &mut vec![0xff; len]);
                let _ = clock.write(offset, &vec![0xff; len]);
            }
        }
    }
}
