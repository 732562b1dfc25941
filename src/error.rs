//! What can go wrong, with the cure.

use std::io;

use arch::{BootError, KvmError, PlanError};

use crate::cures;

/// Why a VM could not be built or had to be given up. `Display` is one line; the sources carry the
/// rest of the chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration value cannot be used.
    #[error("--{field}={value}: {cause}")]
    Config {
        /// The field, as the command line names it.
        field: &'static str,
        /// The value given.
        value: String,
        /// What is wrong.
        cause: String,
        /// What would be right.
        cure: String,
    },
    /// The host has no usable KVM.
    #[error("/dev/kvm cannot be used")]
    KvmUnavailable {
        /// What to do about it here.
        cure: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The platform cannot provide the machine asked for.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A kernel or initrd cannot be loaded.
    #[error("--{field}={value}")]
    Boot {
        /// The field, as the command line names it.
        field: &'static str,
        /// The value given.
        value: String,
        /// The cause.
        #[source]
        source: BootError,
    },
    /// A KVM operation failed.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The host refused a resource.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A vCPU could not go on: KVM failed it, or it left the guest for a reason the VMM does not
    /// know. The report has the exit reason, registers, instruction bytes and last console output.
    #[error("vCPU {id} stopped: {cause}")]
    Vcpu {
        /// The vCPU's number.
        id: u32,
        /// Why it stopped.
        cause: String,
        /// What to do about it, where something can be done.
        cure: Option<&'static str>,
        /// Registers and the last console output, several lines.
        report: String,
    },
}

impl Error {
    pub(crate) fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Host { what, source }
    }

    /// One line that says what to do about it, where something can be done.
    #[must_use]
    pub fn cure(&self) -> Option<&str> {
        match self {
            Self::Config { cure, .. } => Some(cure),
            Self::KvmUnavailable { cure, .. } => Some(cure),
            Self::Vcpu { cure, .. } => *cure,
            Self::Plan(PlanError::Config { cure, .. }) => Some(cure),
            Self::Boot {
                source: BootError::WrongFile { cure, .. },
                ..
            } => Some(cure),
            Self::Boot {
                source: BootError::CmdlineTooLong { .. },
                ..
            } => Some("shorten --append or --cmdline"),
            Self::Boot {
                source: BootError::TooLarge { .. },
                ..
            } => Some("give the guest more memory (--guest-memory) or a smaller image"),
            Self::Kvm(KvmError::Lacks { cure, .. }) => Some(cure),
            Self::Kvm(KvmError::Failed { operation, source }) => {
                cures::of_kvm(operation, source.errno())
            }
            Self::Host { source, .. } => source.raw_os_error().and_then(cures::of_host),
            Self::Boot {
                field: "kernel", ..
            } => Some(
                "give a kernel for this host's architecture in a format it boots (--help); if this is \
                 one, copy, download or build it again",
            ),
            _ => None,
        }
    }

    /// Whether a vCPU stopped at an instruction that KVM had to interpret and does not know. On hosts whose KVM
    /// interprets all code of a guest's kernel, which [`diagnose`](crate::diagnose) finds out, that is why.
    #[must_use]
    pub fn is_failed_emulation(&self) -> bool {
        matches!(self, Self::Vcpu { cure: Some(cure), .. } if *cure == cures::EMULATION)
    }

    /// The multi-line report of a failed vCPU.
    #[must_use]
    pub fn report(&self) -> Option<&str> {
        match self {
            Self::Vcpu { report, .. } => Some(report),
            _ => None,
        }
    }
}
