//! Where a front end takes rights from a process that runs a VM: when everything is open, and in each thread as it
//! begins. What it takes, the core does not know.

use std::fmt;
use std::sync::Arc;

use arch::ThreadBegin;
use devices::Threads;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Takes rights from a process and its threads ([`Attachments::with_confinement`](crate::Attachments::with_confinement)).
///
/// A VM opens everything by a path before [`Self::enter`], and makes threads after it only.
pub trait Confinement: fmt::Debug + Send + Sync {
    /// Everything is open. Nothing of what a guest, a kernel image or a saved VM brings has been looked into yet, but
    /// for the state of a saved VM. Called once, on the thread that builds the VM.
    ///
    /// # Errors
    /// The VM is not built then.
    fn enter(&self) -> Result<(), Error>;

    /// What the process has given up, for [`Status`](crate::Status).
    fn report(&self) -> ConfinementReport;

    /// A thread begins: called in it, before it does anything. Where it cannot take from the thread what it has to,
    /// it does not return.
    fn begin(&self, role: ThreadRole);

    /// Whether a process in which no VM could be built goes on to build another one. It may open files by their paths
    /// until a VM runs then, also after [`Self::enter`].
    fn may_build_again(&self) -> bool {
        false
    }

    /// The threads of the vCPUs have been made: called on the thread that runs the VM, once for each start of the guest.
    /// Threads that it makes from here on begin with what it has by then. Where it cannot take from the thread what it
    /// has to, it does not return.
    fn run(&self) {}
}

/// What a process has given up, and what it has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ConfinementReport {
    /// How much, in a word.
    pub level: String,
    /// What this host has not let it give up.
    pub missing: Vec<MissingPart>,
}

/// Something that a process could not give up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct MissingPart {
    /// Its name.
    pub part: String,
    /// Why.
    pub why: String,
}

impl ConfinementReport {
    /// One in which nothing is missing.
    pub fn new(level: impl Into<String>) -> Self {
        Self {
            level: level.into(),
            missing: Vec::new(),
        }
    }

    /// The same, without this part.
    #[must_use]
    pub fn without(mut self, part: impl Into<String>, why: impl Into<String>) -> Self {
        self.missing.push(MissingPart {
            part: part.into(),
            why: why.into(),
        });
        self
    }
}

/// What a thread of a VM is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ThreadRole {
    /// Runs a vCPU, and what the guest does to registers of devices.
    Vcpu,
    /// Serves the queues of a virtio device of this kind, as `virtio-blk`.
    Device(&'static str),
    /// Writes a VM to files.
    Snapshot,
    /// Watches the process that brings pages of a restored VM.
    PageFaults,
    /// Serves the control socket.
    Control,
    /// Raises lines of the interrupt chip, where KVM does not do so by itself.
    Lines,
}

impl ThreadRole {
    /// A word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vcpu => "vcpu",
            Self::Device(kind) => kind,
            Self::Snapshot => "snapshot",
            Self::PageFaults => "page-faults",
            Self::Control => "control",
            Self::Lines => "lines",
        }
    }
}

/// The confinement of a VM, if it has one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Confined(pub(crate) Option<Arc<dyn Confinement>>);

impl Confined {
    /// Whether something is taken from the process, so that nothing can be opened.
    #[cfg(feature = "snapshot")]
    pub(crate) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn enter(&self) -> Result<(), Error> {
        let Some(by) = &self.0 else {
            return Ok(());
        };
        by.enter()?;
        if !by.may_build_again() {
            devices::sealed::seal();
        }
        Ok(())
    }

    /// The VM is about to run: if something is taken from the process, nothing is opened any more.
    pub(crate) fn seal(&self) {
        if self.0.is_some() {
            devices::sealed::seal();
        }
    }

    /// The threads of the vCPUs are there.
    pub(crate) fn run(&self) {
        if let Some(by) = &self.0 {
            by.run();
        }
    }

    pub(crate) fn report(&self) -> Option<ConfinementReport> {
        self.0.as_ref().map(|by| by.report())
    }

    /// What a thread of this role does first that others make.
    pub(crate) fn beginning(&self, role: ThreadRole) -> Option<ThreadBegin> {
        let by = self.0.clone()?;
        Some(Arc::new(move || by.begin(role)))
    }

    /// Makes threads that are confined as this role is.
    pub(crate) fn threads(&self, role: ThreadRole) -> Threads {
        self.threads_by(move |_| role)
    }

    /// The same for the threads of devices, each by its kind.
    pub(crate) fn device_threads(&self) -> Threads {
        self.threads_by(ThreadRole::Device)
    }

    fn threads_by(
        &self,
        role: impl Fn(&'static str) -> ThreadRole + Send + Sync + 'static,
    ) -> Threads {
        let by = self.0.clone();
        by.map_or_else(Threads::default, |by| {
            Threads::beginning_with(move |name| by.begin(role(name)))
        })
    }
}
