//! A 16550A UART, from vm-superio.

use std::fmt;
use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_superio::SerialState;
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{ByteRegisters, Outcome};
use crate::lock;
use crate::state::{DeviceState, StateError, Uart16550State};

/// The size of the receive FIFO, in bytes.
const FIFO: usize = 64;
/// The register with the loopback bit.
const MODEM_CONTROL: u8 = 4;

/// The interrupt line: each trigger is a pulse.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the sender of input that it may go on.
struct InputReady {
    event: EventFd,
    /// Input was refused since the event was last written.
    refused: AtomicBool,
}

impl SerialEvents for InputReady {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        if self.refused.swap(false, Ordering::Relaxed) {
            // A full counter means that the event is pending anyway.
            let _ = self.event.write(1);
        }
    }
}

type Model = Serial<Interrupt, InputReady, Box<dyn Write + Send>>;

/// A 16550A UART with a receive FIFO of 64 bytes.
pub struct Uart16550(Mutex<Model>);

impl fmt::Debug for Uart16550 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uart16550").finish_non_exhaustive()
    }
}

impl Uart16550 {
    /// `interrupt` is pulsed, `input_ready` is written when the guest has emptied the FIFO after
    /// [`Self::receive`] took less than it was offered, `output` gets what the guest sends and
    /// must not wait.
    #[must_use]
    pub fn new(interrupt: EventFd, input_ready: EventFd, output: Box<dyn Write + Send>) -> Self {
        let events = InputReady {
            event: input_ready,
            refused: AtomicBool::new(false),
        };
        Self(Mutex::new(Serial::with_events(
            Interrupt(interrupt),
            events,
            output,
        )))
    }

    /// Offers input and says how many bytes the FIFO took.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut model = lock(&self.0);
        // In loopback mode the line is cut: nothing is taken, and nothing is lost.
        let before = model.fifo_capacity();
        let result = model.enqueue_raw_bytes(bytes);
        // The error is a full FIFO, or an interrupt eventfd that could not be written: the bytes
        // are in the FIFO then.
        let taken = result.unwrap_or_else(|_| before.saturating_sub(model.fifo_capacity()));
        if taken < bytes.len() {
            model.events().refused.store(true, Ordering::Relaxed);
        }
        taken
    }
}

impl ByteRegisters for Uart16550 {
    fn read_byte(&self, register: u8) -> u8 {
        if register > 7 {
            0xff
        } else {
            lock(&self.0).read(register)
        }
    }

    fn write_byte(&self, register: u8, value: u8) -> Outcome {
        let mut model = lock(&self.0);
        // An output or eventfd that fails is not the guest's fault and nothing it could handle.
        let _ = model.write(register, value);
        if register == MODEM_CONTROL {
            // Input that came in loopback mode was refused; the guest may have left that mode.
            model.events().in_buffer_empty();
        }
        Outcome::Continue
    }

    fn state(&self) -> DeviceState {
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: received,
        } = lock(&self.0).state();
        DeviceState::Uart16550(Uart16550State {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            received,
        })
    }

    fn set_state(&self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Uart16550(state) = state.clone() else {
            return Err(StateError::Foreign);
        };
        let Uart16550State {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            received: in_buffer,
        } = state;
        if in_buffer.len() > FIFO {
            return Err(StateError::Range("received"));
        }
        let state = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        };
        let mut model = lock(&self.0);
        let clone = |event: &EventFd| event.try_clone().map_err(|_| StateError::Host);
        let interrupt = Interrupt(clone(&model.interrupt_evt().0)?);
        let events = InputReady {
            event: clone(&model.events().event)?,
            refused: AtomicBool::new(model.events().refused.load(Ordering::Relaxed)),
        };
        let output = std::mem::replace(model.writer_mut(), Box::new(io::sink()));
        // It fails for input that is too long, and for an eventfd that is full, which one with a reader is not.
        *model =
            Serial::from_state(&state, interrupt, events, output).map_err(|_| StateError::Host)?;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

    use super::*;
    use crate::{BusDevice, OutputRing};

    const DATA: u64 = 0;
    const IER: u64 = 1;
    const RECEIVE: u8 = 1;

    struct Bench {
        uart: Arc<Uart16550>,
        interrupt: EventFd,
        ready: EventFd,
        ring: OutputRing,
    }

    fn bench() -> Bench {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        let (interrupt, ready) = (event(), event());
        let ring = OutputRing::new(64, event());
        let clone = |event: &EventFd| event.try_clone().unwrap();
        let uart = Uart16550::new(clone(&interrupt), clone(&ready), Box::new(ring.clone()));
        Bench {
            uart: Arc::new(uart),
            interrupt,
            ready,
            ring,
        }
    }

    fn read(uart: &Uart16550, register: u64) -> u8 {
        let mut data = [0];
        uart.read(register, &mut data);
        data[0]
    }

    #[test]
    fn what_the_guest_sends_reaches_the_output() {
        let bench = bench();
        for byte in b"hi" {
            let _ = bench.uart.write(DATA, &[*byte]);
        }
        assert_eq!(bench.ring.tail(), "hi");
    }

    #[test]
    fn r3_receive_is_bounded_and_says_when_it_has_room_again() {
        let bench = bench();
        assert_eq!(bench.uart.receive(&[7; 100]), 64);
        assert_eq!(bench.uart.receive(&[7]), 0);
        assert!(bench.ready.read().is_err());
        for _ in 0..64 {
            assert_eq!(read(&bench.uart, DATA), 7);
        }
        assert_eq!(bench.ready.read().unwrap(), 1);
        assert_eq!(bench.uart.receive(&[8]), 1);
        assert_eq!(read(&bench.uart, DATA), 8);
        assert!(bench.ready.read().is_err(), "nothing was refused");
    }

    #[test]
    fn input_pulses_the_interrupt_when_it_comes_and_when_it_is_unmasked() {
        let bench = bench();
        assert_eq!(bench.uart.receive(b"a"), 1);
        assert!(bench.interrupt.read().is_err(), "masked");
        let _ = bench.uart.write(IER, &[RECEIVE]);
        assert_eq!(bench.interrupt.read().unwrap(), 1);
        read(&bench.uart, DATA);
        assert_eq!(bench.uart.receive(b"b"), 1);
        assert_eq!(bench.interrupt.read().unwrap(), 1);
    }

    #[test]
    fn input_refused_in_loopback_mode_is_asked_for_again() {
        const LOOPBACK: u8 = 0x10;
        let bench = bench();
        let _ = bench.uart.write(MODEM_CONTROL.into(), &[LOOPBACK]);
        assert_eq!(bench.uart.receive(b"a"), 0);
        let _ = bench.uart.write(MODEM_CONTROL.into(), &[0]);
        assert_eq!(bench.ready.read().unwrap(), 1);
        assert_eq!(bench.uart.receive(b"a"), 1);
    }

    #[test]
    fn r25_wide_and_distant_accesses_are_legal() {
        let bench = bench();
        let mut data = [0; 16];
        for offset in 0..16 {
            bench.uart.read(offset, &mut data);
            let _ = bench.uart.write(offset, &[0xff; 8]);
        }
    }
}
