//! A device behind its transport, as the VMM sees it: whichever transport that is, and whatever state the device is in.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use super::{Monitor, VirtioDevice};
use crate::descriptor::DiskFile;
use crate::state::{StateError, VirtioState};
use crate::{Change, ChangeError, Query, Report};

/// Where a device is in its life, as the VMM sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceState {
    /// No driver uses it.
    Idle,
    /// A driver uses it.
    Running,
    /// The driver broke a rule, or a fault of the VMM stopped it: it waits for the driver's reset.
    NeedsReset,
    /// A fault of the VMM has lost it.
    Lost,
}

/// A device behind its transport, as the VMM sees it.
pub trait VirtioTransport: Debug + Send + Sync {
    /// Where the device is in its life.
    fn state(&self) -> DeviceState;

    /// What the device counts and tells, in whatever state it is.
    fn monitor(&self) -> Arc<Monitor>;

    /// Stops a device that runs, and answers what is in flight. What the driver has queued stays queued. No
    /// vCPU may run from before this until [`Self::resume`].
    fn pause(&self);

    /// A device that was paused goes on.
    fn resume(&self);

    /// Ends the device's thread, until [`Self::unpark`]. The device is paused, or no driver uses it.
    fn park(&self);

    /// There is a thread for the device again.
    ///
    /// # Errors
    /// When the host refuses one. It may be tried again.
    fn unpark(&self) -> io::Result<()>;

    /// Changes a part of the device, in whatever state it is.
    ///
    /// # Errors
    /// When a value is wrong, the device has no such part or is lost, or this cannot be now.
    fn change(&self, change: &Change) -> Result<(), ChangeError>;

    /// Puts another open file behind the device, in whatever state it is.
    ///
    /// # Errors
    /// As [`Self::change`].
    fn replace_file(&self, file: DiskFile, name: &str) -> Result<(), ChangeError>;

    /// The open file behind the device, to be read while the device is paused or no driver uses it.
    ///
    /// # Errors
    /// When it has no file, the host has no further descriptor, or the device is lost.
    fn file(&self) -> Result<DiskFile, ChangeError>;

    /// Has a device tell something, in whatever state it is.
    ///
    /// # Errors
    /// When the device has no such thing to tell, or is lost.
    fn query(&self, query: Query) -> Result<Report, ChangeError>;

    /// What the device has written is where it stays, whatever happens to the host. It is paused, or no driver uses it.
    ///
    /// # Errors
    /// When the host cannot do that, or the device is lost.
    fn sync(&self) -> Result<(), StateError>;

    /// What of the device and its transport goes on in another machine. The device is paused, or no driver uses it.
    ///
    /// # Errors
    /// When it is lost, or of a kind that cannot be saved.
    fn save(&self) -> Result<VirtioState, StateError>;

    /// Makes a new device what the saved one was. If a driver used it, it is paused then, until [`Self::resume`].
    ///
    /// # Errors
    /// When it is not the state of such a device.
    fn load(&self, state: &VirtioState) -> Result<(), StateError>;

    /// Resets the device and gives it back, for another transport: nothing is behind this one any more.
    /// `None` when the device is lost.
    fn take_device(&self) -> Option<Box<dyn VirtioDevice>>;
}
