//! How a machine ended.

use std::fmt;

/// Why a VM ended without a failure of the VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitReason {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest crashed.
    Crashed(Crash),
    /// [`request_stop`](crate::VmHandle::request_stop) was called.
    Stopped,
}

/// How a guest crashed. `Display` is a part of a sentence, without the report.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Crash {
    /// The vCPU that crashed, or told of it.
    pub vcpu: u32,
    /// What happened.
    pub cause: CrashCause,
    /// The vCPU's registers, the instruction that it was at and the last console output, several lines, in a form
    /// that depends on the architecture. Control characters of the guest's are replaced.
    pub report: String,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}: {}", self.vcpu, self.cause)
    }
}

/// What makes the end of a guest a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CrashCause {
    /// An exception that it could not handle, nor the exceptions that followed (KVM_EXIT_SHUTDOWN).
    TripleFault,
    /// Its kernel panicked and told of it through the pvpanic device.
    Panic,
    /// It told the hypervisor that it crashed (KVM_SYSTEM_EVENT_CRASH).
    SystemEvent,
}

impl CrashCause {
    /// Its name in events.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TripleFault => "triple-fault",
            Self::Panic => "panic",
            Self::SystemEvent => "system-event",
        }
    }
}

impl fmt::Display for CrashCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TripleFault => "triple fault, an exception that it has no working handler for",
            Self::Panic => "its kernel panicked, as it told through pvpanic",
            Self::SystemEvent => "it reported a crash to the hypervisor (KVM_SYSTEM_EVENT_CRASH)",
        })
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::Crashed(crash) => write!(f, "the guest crashed: {crash}"),
            Self::Stopped => f.write_str("it was asked to end"),
        }
    }
}
