//! The Arm PrimeCell UART PL011 (Technical Reference Manual DDI 0183, revision r1p5).
//!
//! There is no bit clock: what is sent has left at once, so the transmit FIFO is always empty, and
//! the receive timeout has always passed, so its interrupt is pending while there is data. Neither
//! direction waits to be enabled (CR): early consoles send before any driver has set the UART up,
//! and what is typed before then waits in the FIFO instead of being lost. There are no line errors:
//! RSR reads as 0.
//!
//! The interrupt line is an edge to the guest. It is pulsed when a bit of MIS rises, whatever
//! raises it; again for new input while a receive interrupt is pending; and again for output that
//! follows a look at the status, so that no event is lost to a handler that is about to return.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::sync::Mutex;

use vmm_sys_util::eventfd::EventFd;

use crate::bus::{BusDevice, Outcome, read_word, written_word};
use crate::lock;
use crate::state::{DeviceState, Pl011State, StateError};

/// Register offsets (table 3-1).
const DR: u64 = 0x000;
const FR: u64 = 0x018;
const ILPR: u64 = 0x020;
const IBRD: u64 = 0x024;
const FBRD: u64 = 0x028;
const LCR_H: u64 = 0x02c;
const CR: u64 = 0x030;
const IFLS: u64 = 0x034;
const IMSC: u64 = 0x038;
const RIS: u64 = 0x03c;
const MIS: u64 = 0x040;
const ICR: u64 = 0x044;
const DMACR: u64 = 0x048;
const PERIPHERAL_ID: u64 = 0xfe0;
/// PeriphID0 to 3 and PCellID0 to 3, one byte in each word.
const IDS: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// FR: the transmit FIFO is empty; the receive FIFO is full, is empty; clear to send, data set
/// ready, data carrier detect.
const TXFE: u32 = 1 << 7;
const RXFF: u32 = 1 << 6;
const RXFE: u32 = 1 << 4;
const MODEM_READY: u32 = 0b111;
/// LCR_H: the FIFOs are on.
const FEN: u32 = 1 << 4;
/// CR: what is sent comes back.
const LBE: u32 = 1 << 7;
/// CR: all but the reserved bits 6:3 (section 3.3.8).
const CR_BITS: u32 = 0xff87;
/// Interrupts: receive, transmit, receive timeout.
const RX: u32 = 1 << 4;
const TX: u32 = 1 << 5;
const RT: u32 = 1 << 6;
/// All interrupts that can be masked.
const INTERRUPTS: u32 = 0x7ff;
/// The FIFOs' depth in this revision.
const FIFO: usize = 32;
/// Values after reset.
const RESET_CR: u32 = 0x300;
const RESET_IFLS: u32 = 0x12;

struct State {
    interrupt: EventFd,
    input_ready: EventFd,
    output: Box<dyn Write + Send>,
    received: VecDeque<u8>,
    /// Input was refused since `input_ready` was last written.
    refused: bool,
    /// The transmit interrupt is pending.
    sent: bool,
    /// The guest has read the interrupt status since the last pulse.
    looked: bool,
    /// ILPR, IBRD, FBRD and DMACR, which only remember.
    remembered: [u32; 4],
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
}

impl State {
    fn capacity(&self) -> usize {
        if self.lcr_h & FEN == 0 { 1 } else { FIFO }
    }

    /// The fill level that raises the receive interrupt (IFLS bits 5:3: 1/8 to 7/8).
    fn trigger_level(&self) -> usize {
        match (self.lcr_h & FEN, (self.ifls >> 3) & 7) {
            (0, _) => 1,
            (_, 0) => FIFO / 8,
            (_, 1) => FIFO / 4,
            (_, 2) => FIFO / 2,
            (_, 3) => FIFO * 3 / 4,
            _ => FIFO * 7 / 8,
        }
    }

    fn raw_interrupts(&self) -> u32 {
        let mut pending = 0;
        if self.received.len() >= self.trigger_level() {
            pending |= RX;
        }
        if !self.received.is_empty() {
            pending |= RT;
        }
        if self.sent {
            pending |= TX;
        }
        pending
    }

    /// MIS.
    fn pending(&self) -> u32 {
        self.raw_interrupts() & self.imsc
    }

    fn pulse(&mut self) {
        self.looked = false;
        // A full counter means that a pulse is on its way.
        let _ = self.interrupt.write(1);
    }

    /// Puts input into the FIFO; says whether there was room.
    fn put(&mut self, byte: u8) -> bool {
        let room = self.received.len() < self.capacity();
        if room {
            self.received.push_back(byte);
        }
        room
    }

    fn get(&mut self) -> u8 {
        let byte = self.received.pop_front().unwrap_or_default();
        self.ask_for_input();
        byte
    }

    /// Asks for the input that was refused, if it would be taken now.
    fn ask_for_input(&mut self) {
        let open = self.received.is_empty() && self.cr & LBE == 0;
        if open && std::mem::take(&mut self.refused) {
            // A full counter means that the request is on its way.
            let _ = self.input_ready.write(1);
        }
    }

    /// Sends a byte; says whether that is worth a pulse although no bit of MIS may have risen.
    fn send(&mut self, byte: u8) -> bool {
        let mut again = 0;
        if self.cr & LBE == 0 {
            // An output that fails is not the guest's fault and nothing it could handle.
            let _ = self.output.write_all(&[byte]);
        } else if self.put(byte) {
            again |= RX | RT;
        }
        self.sent = true;
        if self.looked {
            again |= TX;
        }
        self.pending() & again != 0
    }

    /// A register that only remembers, and the bits it has (sections 3.3.4 to 3.3.6 and 3.3.14).
    fn remembered(&mut self, register: u64) -> Option<(&mut u32, u32)> {
        let (place, bits) = match register {
            ILPR => (0, 0xff),
            IBRD => (1, 0xffff),
            FBRD => (2, 0x3f),
            DMACR => (3, 0x7),
            _ => return None,
        };
        Some((self.remembered.get_mut(place)?, bits))
    }

    fn read(&mut self, register: u64) -> u32 {
        match register {
            DR => self.get().into(),
            FR => {
                let mut flags = TXFE | MODEM_READY;
                if self.received.is_empty() {
                    flags |= RXFE;
                }
                if self.received.len() >= self.capacity() {
                    flags |= RXFF;
                }
                flags
            }
            LCR_H => self.lcr_h,
            CR => self.cr,
            IFLS => self.ifls,
            IMSC => self.imsc,
            RIS | MIS => {
                self.looked = true;
                if register == MIS {
                    self.pending()
                } else {
                    self.raw_interrupts()
                }
            }
            PERIPHERAL_ID.. => {
                let place = usize::try_from((register - PERIPHERAL_ID) / 4).unwrap_or(usize::MAX);
                IDS.get(place).copied().unwrap_or_default().into()
            }
            _ => self.remembered(register).map_or(0, |(value, _)| *value),
        }
    }

    fn write(&mut self, register: u64, value: u32) {
        let before = self.pending();
        let mut again = false;
        match register {
            DR => again = self.send(value.to_le_bytes()[0]),
            LCR_H => self.lcr_h = value & 0xff,
            CR => {
                self.cr = value & CR_BITS;
                self.ask_for_input();
            }
            IFLS => self.ifls = value & 0x3f,
            IMSC => self.imsc = value & INTERRUPTS,
            // The receive interrupts follow the FIFO.
            ICR if value & TX != 0 => self.sent = false,
            _ => {
                if let Some((remembered, bits)) = self.remembered(register) {
                    *remembered = value & bits;
                }
            }
        }
        if again || self.pending() & !before != 0 {
            self.pulse();
        }
    }
}

/// A PL011 with FIFOs of 32 bytes. Registers are words, and an access is one of the word it starts
/// in: a narrower or misaligned read sees that part of it, a wider one sees zeros behind it; a
/// write fills what it leaves out with zeros. An access of no bytes has no effect.
pub struct Pl011(Mutex<State>);

impl fmt::Debug for Pl011 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pl011").finish_non_exhaustive()
    }
}

impl Pl011 {
    /// `interrupt` is pulsed, `input_ready` is written when the guest has emptied the FIFO after
    /// [`Self::receive`] took less than it was offered, `output` gets what the guest sends and
    /// must not wait.
    #[must_use]
    pub fn new(interrupt: EventFd, input_ready: EventFd, output: Box<dyn Write + Send>) -> Self {
        Self(Mutex::new(State {
            interrupt,
            input_ready,
            output,
            received: VecDeque::with_capacity(FIFO),
            refused: false,
            sent: false,
            looked: false,
            remembered: [0; 4],
            lcr_h: 0,
            cr: RESET_CR,
            ifls: RESET_IFLS,
            imsc: 0,
        }))
    }

    /// Offers input and says how many bytes the FIFO took.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut state = lock(&self.0);
        // In loopback mode the line is cut: nothing is taken, and nothing is lost.
        let looped = state.cr & LBE != 0;
        let taken = bytes
            .iter()
            .take_while(|byte| !looped && state.put(**byte))
            .count();
        if taken < bytes.len() {
            state.refused = true;
        }
        if taken > 0 && state.pending() & (RX | RT) != 0 {
            state.pulse();
        }
        taken
    }
}

impl BusDevice for Pl011 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if data.is_empty() {
            return;
        }
        read_word(lock(&self.0).read(offset & !3), offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Outcome {
        if data.is_empty() {
            return Outcome::Continue;
        }
        lock(&self.0).write(offset & !3, written_word(offset, data));
        Outcome::Continue
    }

    fn save(&self) -> Option<DeviceState> {
        let state = lock(&self.0);
        let [ilpr, ibrd, fbrd, dmacr] = state.remembered;
        Some(DeviceState::Pl011(Pl011State {
            received: state.received.iter().copied().collect(),
            sent: state.sent,
            looked: state.looked,
            ilpr,
            ibrd,
            fbrd,
            dmacr,
            lcr_h: state.lcr_h,
            cr: state.cr,
            ifls: state.ifls,
            imsc: state.imsc,
        }))
    }

    /// An interrupt that is pending is told again: it may have been on its way. One too many does no harm.
    fn load(&self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Pl011(saved) = state else {
            return Err(StateError::Foreign);
        };
        if saved.received.len() > FIFO {
            return Err(StateError::Range("received"));
        }
        let mut state = lock(&self.0);
        state.received = saved.received.iter().copied().collect();
        (state.sent, state.looked) = (saved.sent, saved.looked);
        for (register, value) in [
            (ILPR, saved.ilpr),
            (IBRD, saved.ibrd),
            (FBRD, saved.fbrd),
            (DMACR, saved.dmacr),
        ] {
            if let Some((remembered, bits)) = state.remembered(register) {
                *remembered = value & bits;
            }
        }
        state.lcr_h = saved.lcr_h & 0xff;
        state.cr = saved.cr & CR_BITS;
        state.ifls = saved.ifls & 0x3f;
        state.imsc = saved.imsc & INTERRUPTS;
        if state.pending() != 0 {
            let _ = state.interrupt.write(1);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
