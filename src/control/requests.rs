//! How a program that has no handle asks: by descriptors.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Descriptors by which somebody outside wants the VM to end.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// Readable when it shall end at once.
    pub(crate) end: Option<OwnedFd>,
    /// Readable when the guest shall power off, and how long it may take.
    pub(crate) shutdown: Option<(File, Duration)>,
}
