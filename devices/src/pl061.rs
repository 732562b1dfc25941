//! The Arm PrimeCell GPIO controller PL061 (Technical Reference Manual DDI 0190), with the machine's
//! power button on one of its eight lines.
//!
//! Nobody holds the button: pressing it raises the line, and the line falls when the guest has read
//! it high. So no press is too short for a driver that waits out the contacts' bounce first, and
//! every press is one.
//!
//! The interrupt is an edge to the guest, pulsed when a bit of the masked status rises.

use std::sync::Mutex;

use vmm_sys_util::eventfd::EventFd;

use crate::PowerButton;
use crate::bus::{BusDevice, Outcome, read_word, written_word};
use crate::lock;
use crate::state::{DeviceState, Pl061State, StateError};

/// The line of the power button.
const BUTTON: u8 = 1 << Pl061::POWER_BUTTON;

/// Register offsets (table 3-1). The data register takes all offsets below the next one: bits 9:2 of
/// the offset are the lines that an access concerns.
const DIRECTION: u64 = 0x400;
const SENSE: u64 = 0x404;
const BOTH_EDGES: u64 = 0x408;
const EVENT: u64 = 0x40c;
const ENABLE: u64 = 0x410;
const RAW_STATUS: u64 = 0x414;
const MASKED_STATUS: u64 = 0x418;
const CLEAR: u64 = 0x41c;
const MODE: u64 = 0x420;
const PERIPHERAL_ID: u64 = 0xfe0;
/// PeriphID0 to 3 and PCellID0 to 3, one byte in each word.
const IDS: [u8; 8] = [0x61, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// A bit for each line.
#[derive(Debug, Default)]
struct State {
    /// The level of the lines from outside.
    input: u8,
    /// What the guest drives those lines with that are outputs.
    output: u8,
    /// Outputs.
    direction: u8,
    /// Interrupts by level instead of by edge; by both edges; by high level or rising edge; enabled.
    sense: u8,
    both_edges: u8,
    event: u8,
    enable: u8,
    /// Edges that were seen.
    edges: u8,
    /// Lines in hardware mode, which only remembers.
    mode: u8,
}

impl State {
    fn lines(&self) -> u8 {
        (self.output & self.direction) | (self.input & !self.direction)
    }

    /// Changes the level of a line from outside.
    fn set_button(&mut self, high: bool) {
        let before = self.input;
        self.input = if high { BUTTON } else { 0 };
        let wanted = self.both_edges | !(self.input ^ self.event);
        let watched = wanted & !self.sense & !self.direction;
        self.edges |= (before ^ self.input) & watched;
    }

    fn raw_status(&self) -> u8 {
        let level = !(self.lines() ^ self.event);
        (self.edges & !self.sense) | (level & self.sense)
    }

    fn masked_status(&self) -> u8 {
        self.raw_status() & self.enable
    }

    fn read(&mut self, register: u64) -> u8 {
        match register {
            ..DIRECTION => {
                let value = self.lines() & concerned(register);
                if value & self.input & !self.direction & BUTTON != 0 {
                    self.set_button(false);
                }
                value
            }
            DIRECTION => self.direction,
            SENSE => self.sense,
            BOTH_EDGES => self.both_edges,
            EVENT => self.event,
            ENABLE => self.enable,
            RAW_STATUS => self.raw_status(),
            MASKED_STATUS => self.masked_status(),
            MODE => self.mode,
            PERIPHERAL_ID.. => {
                let place = usize::try_from((register - PERIPHERAL_ID) / 4).unwrap_or(usize::MAX);
                IDS.get(place).copied().unwrap_or_default()
            }
            _ => 0,
        }
    }

    fn write(&mut self, register: u64, value: u8) {
        match register {
            ..DIRECTION => {
                let lines = concerned(register);
                self.output = (self.output & !lines) | (value & lines);
            }
            DIRECTION => self.direction = value,
            SENSE => self.sense = value,
            BOTH_EDGES => self.both_edges = value,
            EVENT => self.event = value,
            ENABLE => self.enable = value,
            CLEAR => self.edges &= !value,
            MODE => self.mode = value,
            _ => {}
        }
    }
}

/// The lines that an access to a data register concerns.
fn concerned(register: u64) -> u8 {
    u8::try_from((register >> 2) & 0xff).unwrap_or_default()
}

/// A PL061. Its registers are words of which only the low byte counts; accesses of other widths are
/// as [`Pl011`](crate::Pl011)'s.
#[derive(Debug)]
pub struct Pl061 {
    state: Mutex<State>,
    interrupt: EventFd,
}

impl Pl061 {
    /// The line of the power button; high is pressed.
    pub const POWER_BUTTON: u32 = 3;

    /// `interrupt` is pulsed.
    #[must_use]
    pub fn new(interrupt: EventFd) -> Self {
        Self {
            state: Mutex::default(),
            interrupt,
        }
    }

    /// Changes the state, and tells the guest when that raised a bit of the masked status.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let before = state.masked_status();
        let result = change(&mut state);
        if state.masked_status() & !before != 0 {
            // A full counter means that a pulse is on its way.
            let _ = self.interrupt.write(1);
        }
        result
    }
}

impl PowerButton for Pl061 {
    fn press(&self) {
        self.change(|state| state.set_button(true));
    }

    fn was_noticed(&self) -> bool {
        lock(&self.state).input & BUTTON == 0
    }
}

impl BusDevice for Pl061 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if !data.is_empty() {
            let value = self.change(|state| state.read(offset & !3));
            read_word(value.into(), offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Outcome {
        if !data.is_empty() {
            let [value, ..] = written_word(offset, data).to_le_bytes();
            self.change(|state| state.write(offset & !3, value));
        }
        Outcome::Continue
    }

    fn save(&self) -> Option<DeviceState> {
        let State {
            input,
            output,
            direction,
            sense,
            both_edges,
            event,
            enable,
            edges,
            mode,
        } = *lock(&self.state);
        Some(DeviceState::Pl061(Pl061State {
            input,
            output,
            direction,
            sense,
            both_edges,
            event,
            enable,
            edges,
            mode,
        }))
    }

    /// An interrupt that is pending is told again: it may have been on its way. One too many does no harm.
    fn load(&self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Pl061(state) = *state else {
            return Err(StateError::Foreign);
        };
        let Pl061State {
            input,
            output,
            direction,
            sense,
            both_edges,
            event,
            enable,
            edges,
            mode,
        } = state;
        if input & !BUTTON != 0 {
            return Err(StateError::Range("input"));
        }
        let mut state = lock(&self.state);
        *state = State {
            input,
            output,
            direction,
            sense,
            both_edges,
            event,
            enable,
            edges,
            mode,
        };
        if state.masked_status() != 0 {
            let _ = self.interrupt.write(1);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

    use super::*;

    /// The data register of the button's line, and of all lines.
    const DATA: u64 = (BUTTON as u64) << 2;
    const ALL: u64 = 0x3fc;

    fn gpio() -> Pl061 {
        Pl061::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap())
    }

    fn read(gpio: &Pl061, register: u64) -> u32 {
        let mut data = [0xff; 4];
        gpio.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(gpio: &Pl061, register: u64, value: u8) {
        assert_eq!(gpio.write(register, &[value, 0xff]), Outcome::Continue);
    }

    /// Whether there were pulses since the last look.
    fn pulses(gpio: &Pl061) -> u64 {
        gpio.interrupt.read().unwrap_or(0)
    }

    /// As drivers of keys do: both edges.
    fn watch(gpio: &Pl061) {
        write(gpio, BOTH_EDGES, BUTTON);
        write(gpio, CLEAR, 0xff);
        write(gpio, ENABLE, BUTTON);
    }

    #[test]
    fn a_press_is_an_edge_up_and_an_edge_down_once_it_was_read() {
        let gpio = gpio();
        watch(&gpio);
        assert_eq!(pulses(&gpio), 0);
        gpio.press();
        gpio.press();
        assert_eq!(pulses(&gpio), 1);
        assert_eq!(read(&gpio, MASKED_STATUS), u32::from(BUTTON));
        write(&gpio, CLEAR, BUTTON);
        assert_eq!(read(&gpio, RAW_STATUS), 0);
        assert!(!gpio.was_noticed());
        assert_eq!(read(&gpio, 0x10 << 2), 0, "another line");
        assert!(!gpio.was_noticed());
        assert_eq!(read(&gpio, DATA), u32::from(BUTTON));
        assert!(gpio.was_noticed());
        assert_eq!(pulses(&gpio), 1);
        assert_eq!(read(&gpio, MASKED_STATUS), u32::from(BUTTON));
        assert_eq!(read(&gpio, ALL), 0);
        write(&gpio, CLEAR, BUTTON);
        assert_eq!(read(&gpio, MASKED_STATUS), 0);
        assert_eq!(pulses(&gpio), 0);
    }

    #[test]
    fn an_edge_that_was_masked_is_told_when_it_is_enabled() {
        let gpio = gpio();
        write(&gpio, EVENT, BUTTON);
        gpio.press();
        assert_eq!(pulses(&gpio), 0);
        assert_eq!(read(&gpio, RAW_STATUS), u32::from(BUTTON));
        write(&gpio, ENABLE, BUTTON);
        assert_eq!(pulses(&gpio), 1);
        write(&gpio, CLEAR, BUTTON);
        assert_eq!(read(&gpio, DATA), u32::from(BUTTON));
        assert_eq!(read(&gpio, RAW_STATUS), 0, "only rising edges count");
    }

    #[test]
    fn a_level_is_pending_as_long_as_it_lasts() {
        let gpio = gpio();
        write(&gpio, SENSE, BUTTON);
        write(&gpio, EVENT, BUTTON);
        write(&gpio, ENABLE, BUTTON);
        gpio.press();
        write(&gpio, CLEAR, BUTTON);
        assert_eq!(read(&gpio, MASKED_STATUS), u32::from(BUTTON));
        assert_eq!(read(&gpio, DATA), u32::from(BUTTON));
        assert_eq!(read(&gpio, MASKED_STATUS), 0);
    }

    #[test]
    fn outputs_read_as_they_are_driven() {
        let gpio = gpio();
        write(&gpio, DIRECTION, 0x0f);
        write(&gpio, 0x3c << 2, 0xff);
        assert_eq!(read(&gpio, ALL), 0x0c);
        gpio.press();
        assert_eq!(read(&gpio, DATA), u32::from(BUTTON), "driven, not pressed");
        assert!(!gpio.was_noticed());
    }

    #[test]
    fn drivers_recognise_the_cell() {
        let gpio = gpio();
        let ids: Vec<_> = (0..8).map(|n| read(&gpio, 0xfe0 + 4 * n)).collect();
        assert_eq!(ids, [0x61, 0x10, 0x04, 0, 0x0d, 0xf0, 0x05, 0xb1]);
    }

    proptest! {
        #[test]
        fn r25_any_access_is_legal_and_the_button_still_works(
            accesses in prop::collection::vec(
                (prop_oneof![0u64..0x1000, any::<u64>()], prop::collection::vec(any::<u8>(), 0..9), any::<bool>()),
                0..50,
            )
        ) {
            let gpio = gpio();
            for (offset, mut data, is_write) in accesses {
                if is_write {
                    prop_assert_eq!(gpio.write(offset, &data), Outcome::Continue);
                } else {
                    gpio.read(offset, &mut data);
                }
            }
            write(&gpio, DIRECTION, 0);
            write(&gpio, SENSE, 0);
            watch(&gpio);
            pulses(&gpio);
            gpio.press();
            prop_assert_eq!(pulses(&gpio), 1);
            prop_assert_eq!(read(&gpio, DATA), u32::from(BUTTON));
        }
    }
}
