//! What can go wrong, with the cure.

use std::io;

use arch::{BootError, KvmError, PlanError};

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
    KvmUnavailable(#[source] io::Error),
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
            Self::KvmUnavailable(source) => Some(match source.kind() {
                io::ErrorKind::NotFound => {
                    "load the KVM module (kvm-intel, kvm-amd) and enable virtualization in the \
                     firmware; in a VM, enable nested virtualization"
                }
                io::ErrorKind::PermissionDenied => {
                    "add your user to the group that owns it (`sudo usermod -aG kvm $USER`, then \
                     log in again)"
                }
                _ => "run `vmm-reference doctor` for what is missing",
            }),
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
            Self::Kvm(KvmError::Failed { source, .. }) if source.errno() == libc::EMFILE => {
                Some("raise the limit of open files (ulimit -n); each vCPU takes one")
            }
            Self::Boot {
                field: "kernel", ..
            } => Some(
                "give a kernel for this host's architecture in a format it boots (--help); if this is \
                 one, copy, download or build it again",
            ),
            _ => None,
        }
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
