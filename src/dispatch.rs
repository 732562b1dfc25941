//! What an exit means: a free function over values, so tests feed it fabricated exits.

use devices::{Bus, Outcome};
use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};

use crate::control::ExitReason;
use crate::exit::Exit;

/// The address spaces a vCPU can reach.
#[derive(Debug, Default)]
pub(crate) struct IoSpaces {
    pub(crate) mmio: Bus,
    pub(crate) pio: Bus,
}

/// What the vCPU does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Continue,
    /// The VM ends.
    End(ExitReason),
    /// The vCPU cannot go on.
    Fail(String),
}

impl From<Outcome> for Flow {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Continue => Self::Continue,
            Outcome::PowerOff => Self::End(ExitReason::PoweredOff),
            Outcome::Reset => Self::End(ExitReason::Reset),
            Outcome::Panic => Self::End(ExitReason::Crashed),
        }
    }
}

/// Serves one exit.
pub(crate) fn dispatch(exit: Exit<'_>, spaces: &IoSpaces) -> Flow {
    match exit {
        Exit::MmioRead { address, data } => spaces.mmio.read(address, data),
        Exit::MmioWrite { address, data } => return spaces.mmio.write(address, data).into(),
        // String I/O moves every element through the same port.
        Exit::PortIn { port, size, data } => {
            for element in data.chunks_mut(size) {
                spaces.pio.read(port.into(), element);
            }
        }
        Exit::PortOut { port, size, data } => {
            for element in data.chunks(size) {
                match spaces.pio.write(port.into(), element) {
                    Outcome::Continue => {}
                    end => return end.into(),
                }
            }
        }
        Exit::Nothing => {}
        Exit::Shutdown => return Flow::End(ExitReason::Crashed),
        Exit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN) => return Flow::End(ExitReason::PoweredOff),
        Exit::SystemEvent(KVM_SYSTEM_EVENT_RESET) => return Flow::End(ExitReason::Reset),
        Exit::SystemEvent(KVM_SYSTEM_EVENT_CRASH) => return Flow::End(ExitReason::Crashed),
        Exit::SystemEvent(event) => return Flow::Fail(format!("unknown system event {event}")),
        Exit::FailEntry(reason) => {
            return Flow::Fail(format!(
                "the hardware refused to enter the guest ({reason:#x})"
            ));
        }
        Exit::InternalError(suberror) => {
            return Flow::Fail(format!("KVM internal error, suberror {suberror}"));
        }
        Exit::Unknown(reason) => return Flow::Fail(format!("unknown exit reason {reason}")),
    }
    Flow::Continue
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use devices::{BusDevice, BusEntry};

    use super::*;

    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<Vec<u8>>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }

        fn write(&self, _offset: u64, data: &[u8]) -> Outcome {
            self.0.lock().unwrap().push(data.to_vec());
            if data == [0xfe] {
                Outcome::Reset
            } else {
                Outcome::Continue
            }
        }
    }

    fn spaces() -> (IoSpaces, Arc<Recorder>) {
        let device = Arc::new(Recorder::default());
        let entry = BusEntry {
            base: 0x10,
            len: 8,
            device: device.clone(),
        };
        let pio = Bus::new(vec![entry]).unwrap();
        (
            IoSpaces {
                mmio: Bus::default(),
                pio,
            },
            device,
        )
    }

    #[test]
    fn r25_string_output_is_one_write_per_element() {
        let (spaces, device) = spaces();
        let exit = Exit::PortOut {
            port: 0x10,
            size: 2,
            data: &[1, 2, 3, 4],
        };
        assert_eq!(dispatch(exit, &spaces), Flow::Continue);
        assert_eq!(*device.0.lock().unwrap(), [[1, 2], [3, 4]]);
    }

    #[test]
    fn string_output_stops_at_the_element_that_ends_the_vm() {
        let (spaces, device) = spaces();
        let exit = Exit::PortOut {
            port: 0x10,
            size: 1,
            data: &[1, 0xfe, 3],
        };
        assert_eq!(dispatch(exit, &spaces), Flow::End(ExitReason::Reset));
        assert_eq!(device.0.lock().unwrap().len(), 2);
    }

    #[test]
    fn unmapped_reads_give_all_ones() {
        let (spaces, _) = spaces();
        let mut data = [0; 8];
        dispatch(
            Exit::MmioRead {
                address: u64::MAX,
                data: &mut data,
            },
            &spaces,
        );
        assert_eq!(data, [0xff; 8]);
    }

    #[test]
    fn r45_a_triple_fault_is_a_crash_and_never_a_power_off() {
        let (spaces, _) = spaces();
        assert_eq!(
            dispatch(Exit::Shutdown, &spaces),
            Flow::End(ExitReason::Crashed)
        );
        assert!(matches!(
            dispatch(Exit::InternalError(1), &spaces),
            Flow::Fail(_)
        ));
        assert!(matches!(
            dispatch(Exit::Unknown(99), &spaces),
            Flow::Fail(_)
        ));
        assert!(matches!(
            dispatch(Exit::FailEntry(7), &spaces),
            Flow::Fail(_)
        ));
    }
}
