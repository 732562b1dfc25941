//! The errors of planning, booting and applying.

use std::io;

use crate::{Cap, ConfigPath, Difference, Errno, Kvm, MemoryError};

/// What Linux answers when there is no such device, on every architecture.
const ENODEV: i32 = 19;

/// The configuration cannot become a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A configuration value is outside what the platform offers.
    #[error("{}: {cause}", .field.with_value(.value))]
    Config {
        /// Where the configuration has the value.
        field: ConfigPath,
        /// The value given, as text; empty where there is none.
        value: String,
        /// What is wrong with it.
        cause: String,
        /// What would be right, in words of the configuration (`key=value`).
        cure: String,
    },
    /// An address, interrupt or identifier space of the platform is full or misused.
    #[error("cannot allocate {what}: {cause}")]
    Allocation {
        /// What was to be allocated.
        what: &'static str,
        /// The allocator's answer.
        cause: String,
    },
}

impl PlanError {
    /// Names what could not be allocated; made for `map_err`.
    pub fn allocation<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> Self {
        move |cause| Self::Allocation {
            what,
            cause: cause.to_string(),
        }
    }
}

/// The kernel, the initrd or the boot information cannot be placed in guest memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The kernel image cannot be booted; the text says why.
    #[error("{0}")]
    Kernel(String),
    /// A file is not what it should be, and it is known what to do about that.
    #[error("{cause}")]
    WrongFile {
        /// What is wrong with it.
        cause: String,
        /// What would be right.
        cure: String,
    },
    /// Something does not fit where it has to be.
    #[error("{what} ({size} bytes) does not fit: {cause}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
        /// The limit it broke.
        cause: String,
    },
    /// The kernel command line is longer than the kernel takes.
    #[error("{size} bytes of kernel command line, and this kernel takes at most {limit}")]
    CmdlineTooLong {
        /// Its length in bytes.
        size: u64,
        /// The longest that would do.
        limit: u64,
    },
    /// The image could not be read.
    #[error("cannot read the image")]
    Read(#[source] io::Error),
    /// A write to guest memory failed.
    #[error("cannot write {what} to guest memory")]
    Memory {
        /// What was written.
        what: &'static str,
        /// The cause.
        #[source]
        source: MemoryError,
    },
}

/// KVM does not do what the machine needs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvmError {
    /// An operation failed.
    #[error("{operation} failed")]
    Failed {
        /// The ioctl or the check, as the KVM API documentation names it.
        operation: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// It is not known how to save something of a machine.
    #[error("this version does not know how to save {0}")]
    NotSaved(&'static str),
    /// It does not take what a saved machine has.
    #[error("{}", texts(.0))]
    Differs(Vec<Difference>),
    /// This host's KVM has not got what the platform cannot do without.
    #[error("this host's KVM does not have {what}")]
    Lacks {
        /// What is missing.
        what: &'static str,
        /// Which host, or which kernel, has it.
        cure: &'static str,
    },
}

fn texts(differences: &[Difference]) -> String {
    let texts: Vec<_> = differences.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

impl KvmError {
    /// Names the operation that an error belongs to; made for `map_err`.
    pub fn of(operation: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Failed {
            operation,
            source: errno.into(),
        }
    }

    /// Looks for capabilities, given with their names.
    ///
    /// # Errors
    /// [`KvmError::Lacks`] the first one that is not there.
    pub fn check(kvm: &Kvm, needed: &[(Cap, &'static str)]) -> Result<(), Self> {
        match needed.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            Some(&(_, what)) => Err(Self::Lacks {
                what,
                cure: "use a newer kernel",
            }),
            None => Ok(()),
        }
    }

    /// As [`KvmError::of`] for KVM_CREATE_DEVICE, which answers ENODEV where the host or the kernel has
    /// no such devices; `what` and `cure` are those of [`KvmError::Lacks`].
    pub fn of_device(what: &'static str, cure: &'static str) -> impl Fn(Errno) -> Self {
        move |source| match source.errno() {
            ENODEV => Self::Lacks { what, cure },
            _ => Self::of("KVM_CREATE_DEVICE")(source),
        }
    }
}
