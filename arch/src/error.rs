//! The errors of planning, booting and applying.

use kvm_ioctls::Error as Errno;

/// The configuration cannot become a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A configuration value is outside what the platform offers.
    #[error("--{field}={value}: {cause}")]
    Config {
        /// The configuration field, as the command line names it.
        field: &'static str,
        /// The value given.
        value: String,
        /// What is wrong with it.
        cause: String,
        /// What would be right.
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
    Read(#[source] std::io::Error),
    /// A write to guest memory failed.
    #[error("cannot write {what} to guest memory")]
    Memory {
        /// What was written.
        what: &'static str,
        /// The cause.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

/// A KVM operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} failed")]
pub struct KvmError {
    /// The ioctl or the check, as the KVM API documentation names it.
    pub operation: &'static str,
    /// What the kernel answered.
    #[source]
    pub source: Errno,
}

impl KvmError {
    /// Names the operation that `source` belongs to; made for `map_err`.
    pub fn of(operation: &'static str) -> impl Fn(Errno) -> Self {
        move |source| Self { operation, source }
    }
}
