//! What an exit means: a free function over values, so tests feed it fabricated exits.

use devices::{Bus, Outcome};
use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
};

use crate::control::ending::{CrashCause, ExitReason};
use crate::cures::EMULATION;
use crate::vm::exit::Exit;

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
    /// The guest crashed, and with it the VM ends.
    Crash(CrashCause),
    /// The vCPU cannot go on.
    Fail(Failure),
}

/// Why a vCPU cannot go on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What happened.
    pub(crate) cause: String,
    /// What to do about it, where something can be done.
    pub(crate) cure: Option<&'static str>,
}

impl From<String> for Failure {
    fn from(cause: String) -> Self {
        Self { cause, cure: None }
    }
}

impl From<Outcome> for Flow {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Continue => Self::Continue,
            Outcome::PowerOff => Self::End(ExitReason::PoweredOff),
            Outcome::Reset => Self::End(ExitReason::Reset),
            Outcome::Panic => Self::Crash(CrashCause::Panic),
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
        Exit::Shutdown => return Flow::Crash(CrashCause::TripleFault),
        Exit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN) => return Flow::End(ExitReason::PoweredOff),
        Exit::SystemEvent(KVM_SYSTEM_EVENT_RESET) => return Flow::End(ExitReason::Reset),
        Exit::SystemEvent(KVM_SYSTEM_EVENT_CRASH) => {
            return Flow::Crash(CrashCause::SystemEvent);
        }
        Exit::SystemEvent(event) => {
            return Flow::Fail(format!("unknown system event {event}").into());
        }
        Exit::FailEntry(reason) => {
            return Flow::Fail(
                format!("the hardware refused to enter the guest ({reason:#x})").into(),
            );
        }
        Exit::InternalError(suberror) => return Flow::Fail(internal_error(suberror)),
        Exit::Unknown(reason) => {
            return Flow::Fail(format!("unknown exit reason {reason}").into());
        }
    }
    Flow::Continue
}

/// KVM's suberrors (include/uapi/linux/kvm.h).
fn internal_error(suberror: u32) -> Failure {
    let meaning = match suberror {
        KVM_INTERNAL_ERROR_EMULATION => "an instruction that it cannot interpret",
        KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions while it delivered another one",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while it delivered an event",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
            "an exit of the hardware that it does not know"
        }
        _ => "a cause that this VMM does not know",
    };
    Failure {
        cause: format!("KVM internal error, suberror {suberror}: {meaning}"),
        cure: (suberror == KVM_INTERNAL_ERROR_EMULATION).then_some(EMULATION),
    }
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
        for (exit, cause) in [
            (Exit::Shutdown, CrashCause::TripleFault),
            (
                Exit::SystemEvent(KVM_SYSTEM_EVENT_CRASH),
                CrashCause::SystemEvent,
            ),
        ] {
            assert_eq!(dispatch(exit, &spaces), Flow::Crash(cause));
        }
        assert_eq!(Flow::from(Outcome::Panic), Flow::Crash(CrashCause::Panic));
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

    #[test]
    fn an_instruction_that_kvm_cannot_interpret_is_told_from_other_errors_of_kvm() {
        let (spaces, _) = spaces();
        let fails = |suberror| match dispatch(Exit::InternalError(suberror), &spaces) {
            Flow::Fail(failure) => failure,
            other => panic!("{other:?}"),
        };
        let failure = fails(KVM_INTERNAL_ERROR_EMULATION);
        assert!(failure.cause.contains("suberror 1: an instruction"));
        assert!(failure.cure.unwrap().contains("doctor"));
        for other in [2, 3, 4, 99] {
            assert_eq!(fails(other).cure, None);
        }
    }
}
