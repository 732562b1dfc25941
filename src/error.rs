//! What can go wrong, with the cure.

use std::io;

use arch::{BootError, ConfigPath, KvmError, PlanError};

use crate::cures;

/// Why a VM could not be built or had to be given up. `Display` is one line; the sources carry the
/// rest of the chain, and [`Error::cure`] says what would help.
///
/// The texts speak of the configuration and not of a front end: of `guest-memory` and `blk[0].queues`, and in
/// cures of `key=value`.
///
/// ```
/// use vmm_reference::{BlkConfig, Error, VmConfig};
///
/// let disk = BlkConfig::new("root.img").with_queues(99);
/// # if cfg!(feature = "virtio-blk") {
/// let error = VmConfig::default().with_disk(disk).machine().unwrap_err();
/// assert_eq!(error.to_string(), "blk[0].queues=99: it is 1 to 16");
/// let Error::Config { field, value, .. } = error else { unreachable!() };
/// assert_eq!((field.first(), field.index(), field.rest()), ("blk", Some(0), "queues"));
/// assert_eq!(value, "99");
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration value cannot be used: by its own limits, by what else is configured, or by what the
    /// host and the platform offer.
    #[error("{}: {cause}", .field.with_value(.value))]
    Config {
        /// Where the configuration has the value. Values that are not of [`VmConfig`](crate::VmConfig) have the
        /// name under which the library was given them.
        field: ConfigPath,
        /// The value given, as text; empty where there is none.
        value: String,
        /// What is wrong.
        cause: String,
        /// What would be right, in words of the configuration (`key=value`).
        cure: String,
    },
    /// Something that the configuration names (a file, a network device, a socket) cannot be used: the host says
    /// why.
    #[error("{}", .field.with_value(.value))]
    Refused {
        /// Where the configuration names it, as for [`Error::Config`].
        field: ConfigPath,
        /// The value given, as text.
        value: String,
        /// The cause. Its kind is the host's ([`io::ErrorKind::NotFound`]); its text may say more than the host
        /// does.
        #[source]
        source: io::Error,
        /// What would be right, in words of the configuration (`key=value`).
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
    /// The platform has no room for the machine asked for. (A value that it does not offer is
    /// [`Error::Config`].)
    #[error(transparent)]
    Plan(PlanError),
    /// A kernel or initrd cannot be loaded.
    #[error("{}", .field.with_value(.value))]
    Boot {
        /// Where the configuration names the file.
        field: ConfigPath,
        /// The file's path, or a name in parentheses where there is no file.
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
    /// Whoever had the content of guest memory is gone, and so nobody can go on.
    #[error("guest memory is lost: {cause}")]
    LostMemory {
        /// Who is gone.
        cause: String,
        /// What to do about it.
        cure: &'static str,
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

/// A value is as wrong when the platform refuses it as when the configuration does.
impl From<PlanError> for Error {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Config {
                field,
                value,
                cause,
                cure,
            } => Self::Config {
                field,
                value,
                cause,
                cure,
            },
            other => Self::Plan(other),
        }
    }
}

impl Error {
    pub(crate) fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Host { what, source }
    }

    /// The whole chain of causes on one line: this error and each source of it, with colons between them.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    }

    /// The host's own error behind this one, if there is one, however deep in the chain of causes: its kind and
    /// its number ([`io::Error::raw_os_error`]).
    #[must_use]
    pub fn io(&self) -> Option<&io::Error> {
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            if let Some(error) = cause.downcast_ref() {
                return Some(error);
            }
            source = cause.source();
        }
        None
    }

    /// Where the configuration has what the error is about, and the value there, as text.
    #[must_use]
    pub fn value(&self) -> Option<(&ConfigPath, &str)> {
        match self {
            Self::Config { field, value, .. }
            | Self::Refused { field, value, .. }
            | Self::Boot { field, value, .. } => Some((field, value)),
            _ => None,
        }
    }

    /// One line that says what to do about it, where something can be done.
    #[must_use]
    pub fn cure(&self) -> Option<&str> {
        match self {
            Self::Config { cure, .. } | Self::Refused { cure, .. } => Some(cure),
            Self::KvmUnavailable { cure, .. } => Some(cure),
            Self::LostMemory { cure, .. } => Some(cure),
            Self::Vcpu { cure, .. } => *cure,
            Self::Boot {
                source: BootError::WrongFile { cure, .. },
                ..
            } => Some(cure),
            Self::Boot {
                source: BootError::CmdlineTooLong { .. },
                ..
            } => Some("shorten append=TEXT or cmdline=TEXT"),
            Self::Boot {
                source: BootError::TooLarge { .. },
                ..
            } => Some("give the guest more memory (guest-memory=SIZE) or a smaller image"),
            Self::Kvm(KvmError::Lacks { cure, .. }) => Some(cure),
            Self::Kvm(KvmError::Failed { operation, source }) => source
                .raw_os_error()
                .and_then(|errno| cures::of_kvm(operation, errno)),
            Self::Host { source, .. } => source.raw_os_error().and_then(cures::of_host),
            Self::Boot { field, .. } if *field == "kernel" => Some(
                "give a kernel for this host's architecture, in a format that it boots and this build has; if \
                 this is one, copy, download or build it again",
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

/// An error of the same kind whose text says more.
pub(crate) fn with_text(error: io::Error, text: impl FnOnce(&io::Error) -> String) -> io::Error {
    io::Error::new(error.kind(), text(&error))
}
