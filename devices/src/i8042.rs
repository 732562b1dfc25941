//! The i8042 keyboard controller of a PC (IBM PS/2 Technical Reference, "Keyboard and Auxiliary Device
//! Controller"): the guest resets the machine by it, and it has a keyboard on which nothing but Ctrl-Alt-Del is typed.
//!
//! There is no mouse: tests of its port fail at once, so that no driver waits for one.

mod keyboard;

use std::fmt::Debug;
use std::sync::Mutex;

use vmm_sys_util::eventfd::EventFd;

use self::keyboard::Keyboard;
use crate::bus::{ByteRegisters, Outcome};
use crate::lock;
use crate::state::{DeviceState, I8042State, StateError};

/// Ports, from 0x60 on.
const DATA: u8 = 0;
const COMMAND: u8 = 4;
/// System control port B of a PC (0x61), between the controller's own: bit 5 is the output of the interval
/// timer's channel 2. Where there is no timer, a guest that waits for it finds it has ended.
const PORT_B: u8 = 1;
const TIMER_ENDED: u8 = 1 << 5;

/// Bits of the status: a byte can be read; the last one written was a command that takes another one; nobody has
/// locked the keyboard.
const OUTPUT_FULL: u8 = 1;
const AFTER_COMMAND: u8 = 1 << 3;
const UNLOCKED: u8 = 1 << 4;

/// Bits of the command byte: interrupts for bytes that can be read; the self-test has passed, which the status shows
/// too; the keyboard or the mouse is off; codes of the keyboard are translated to the older set 1.
const INTERRUPT: u8 = 1;
const SYSTEM: u8 = 1 << 2;
const KEYBOARD_OFF: u8 = 1 << 4;
const MOUSE_OFF: u8 = 1 << 5;
const TRANSLATE: u8 = 1 << 6;

/// Bits of the output port: the processor's reset line, low resets; the gate of address line 20.
const NO_RESET: u8 = 1;
const A20: u8 = 1 << 1;

/// Answers to tests: the controller works; the keyboard's port does; nothing is at the mouse's.
const SELF_TEST_PASSED: u8 = 0x55;
const PORT_WORKS: u8 = 0;
const CLOCK_STUCK: u8 = 1;

/// Types Ctrl-Alt-Del on a guest's keyboard.
pub trait CtrlAltDel: Debug + Send + Sync {
    /// Types it, if a driver of the guest listens; says whether one does.
    #[must_use = "whether the guest hears of it"]
    fn ctrl_alt_del(&self) -> bool;
}

#[derive(Debug)]
struct State {
    /// The command byte.
    control: u8,
    /// A command that waits for its byte at the data port.
    command: Option<u8>,
    /// What the controller itself answers; it comes before what the keyboard says.
    answer: Option<u8>,
    keyboard: Keyboard,
}

impl State {
    fn is_translated(&self) -> bool {
        self.control & TRANSLATE != 0
    }

    /// What the data port reads as, if there is something.
    fn output(&self) -> Option<u8> {
        let heard = self.control & KEYBOARD_OFF == 0;
        let typed = self.keyboard.bytes.front().copied();
        self.answer.or(typed.filter(|_| heard))
    }

    fn take_output(&mut self) -> Option<u8> {
        let output = self.output();
        if output.is_some() && self.answer.take().is_none() {
            self.keyboard.bytes.pop_front();
        }
        output
    }

    fn has_interrupt(&self) -> bool {
        self.control & INTERRUPT != 0 && self.output().is_some()
    }

    fn status(&self) -> u8 {
        let full = if self.output().is_some() {
            OUTPUT_FULL
        } else {
            0
        };
        let command = self.command.map_or(0, |_| AFTER_COMMAND);
        full | command | (self.control & SYSTEM) | UNLOCKED
    }

    fn carry_out(&mut self, command: u8) -> Outcome {
        self.command = None;
        match command {
            // The command byte; the rest of the memory has nothing.
            0x20 => self.answer = Some(self.control),
            0x21..=0x3f => self.answer = Some(0),
            // They take a byte.
            0x60..=0x7f | 0xd1..=0xd4 => self.command = Some(command),
            0xa7 => self.control |= MOUSE_OFF,
            0xa8 => self.control &= !MOUSE_OFF,
            0xa9 => self.answer = Some(CLOCK_STUCK),
            0xaa => {
                self.control |= SYSTEM;
                self.answer = Some(SELF_TEST_PASSED);
            }
            0xab => self.answer = Some(PORT_WORKS),
            0xad => self.control |= KEYBOARD_OFF,
            0xae => self.control &= !KEYBOARD_OFF,
            0xc0 => self.answer = Some(0),
            0xd0 => self.answer = Some(NO_RESET | A20),
            0xfe => return Outcome::Reset,
            _ => {}
        }
        Outcome::Continue
    }

    fn write_data(&mut self, byte: u8) -> Outcome {
        match self.command.take() {
            Some(0x60) => self.control = byte,
            Some(0xd1) if byte & NO_RESET == 0 => return Outcome::Reset,
            // As if the keyboard, or the mouse, had said it; of a mouse the status would say so.
            Some(0xd2 | 0xd3) => self.answer = Some(byte),
            // The memory beyond, the output port's other lines, and a mouse that is not there.
            Some(_) => {}
            None => {
                self.control &= !KEYBOARD_OFF;
                self.keyboard.write(byte, self.is_translated());
            }
        }
        Outcome::Continue
    }
}

/// Ports 0x60 (data) to 0x64 (commands and status). The interrupt is an edge to the guest, for each byte that it can
/// read.
#[derive(Debug)]
pub struct I8042 {
    state: Mutex<State>,
    interrupt: EventFd,
}

impl I8042 {
    /// As a PC's firmware leaves it: tested, codes translated, without interrupts. `interrupt` is pulsed.
    #[must_use]
    pub fn new(interrupt: EventFd) -> Self {
        Self {
            state: Mutex::new(State {
                control: SYSTEM | TRANSLATE,
                command: None,
                answer: None,
                keyboard: Keyboard::default(),
            }),
            interrupt,
        }
    }

    /// Changes the state, and tells the guest when that gave it a byte to read.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let before = state.has_interrupt();
        let result = change(&mut state);
        if !before && state.has_interrupt() {
            self.pulse();
        }
        result
    }

    fn pulse(&self) {
        // A full counter means that a pulse is on its way.
        let _ = self.interrupt.write(1);
    }
}

/// A driver listens when the keyboard is on, interrupts are, and what was typed before was read.
impl CtrlAltDel for I8042 {
    fn ctrl_alt_del(&self) -> bool {
        self.change(|state| {
            let listens = state.control & (INTERRUPT | KEYBOARD_OFF) == INTERRUPT;
            listens && state.keyboard.ctrl_alt_del(state.is_translated())
        })
    }
}

impl ByteRegisters for I8042 {
    fn read_byte(&self, register: u8) -> u8 {
        match register {
            DATA => {
                let mut state = lock(&self.state);
                let byte = state.take_output();
                // The next one comes behind it.
                if byte.is_some() && state.has_interrupt() {
                    self.pulse();
                }
                byte.unwrap_or_default()
            }
            PORT_B => TIMER_ENDED,
            COMMAND => lock(&self.state).status(),
            _ => 0,
        }
    }

    fn write_byte(&self, register: u8, value: u8) -> Outcome {
        match register {
            DATA => self.change(|state| state.write_data(value)),
            COMMAND => self.change(|state| state.carry_out(value)),
            _ => Outcome::Continue,
        }
    }

    fn state(&self) -> DeviceState {
        let state = lock(&self.state);
        DeviceState::I8042(I8042State {
            control: state.control,
            command: state.command,
            answer: state.answer,
            scanning: state.keyboard.scanning,
            keyboard_command: state.keyboard.command,
            typed: state.keyboard.bytes.iter().copied().collect(),
        })
    }

    /// A byte that can be read is announced again: its interrupt may have been on its way. One too many does no harm.
    fn set_state(&self, state: &DeviceState) -> Result<(), StateError> {
        let saved = match state {
            DeviceState::I8042(saved) => saved,
            // Of a version whose controller could only reset: as a new one.
            DeviceState::Stateless {} => return Ok(()),
            _ => return Err(StateError::Foreign),
        };
        if saved.typed.len() > Keyboard::BYTES {
            return Err(StateError::Range("typed"));
        }
        let mut state = lock(&self.state);
        *state = State {
            control: saved.control,
            command: saved.command,
            answer: saved.answer,
            keyboard: Keyboard {
                scanning: saved.scanning,
                command: saved.keyboard_command,
                bytes: saved.typed.iter().copied().collect(),
            },
        };
        if state.has_interrupt() {
            self.pulse();
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
