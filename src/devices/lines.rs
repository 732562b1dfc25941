//! The lines of the interrupt chip, as a device gets one: an event, each write to which is an interrupt.

use std::ops::Range;
use std::sync::Arc;

use arch::{DevicePlan, Gsi, KvmError};
use devices::Threads;
use vmm_sys_util::eventfd::EventFd;

use crate::Error;
use crate::devices::gsi::MsiRoutes;
use crate::wake::eventfd;

/// The lines of the interrupt chip.
pub(crate) struct Lines<'a> {
    /// Which there are.
    pub(crate) range: Range<Gsi>,
    /// How KVM routes them, and the messages beside them.
    pub(crate) routes: Arc<MsiRoutes>,
    /// Makes the devices' threads.
    #[cfg_attr(not(feature = "virtio"), allow(dead_code))]
    pub(crate) threads: Threads,
    /// Makes each write to an eventfd an edge on one.
    pub(crate) connect: &'a dyn Fn(&EventFd, Gsi) -> Result<(), KvmError>,
}

/// An eventfd that raises the planned interrupt of a device.
pub(crate) fn interrupt(planned: &DevicePlan, lines: &Lines<'_>) -> Result<EventFd, Error> {
    let event = eventfd()?;
    if let Some(gsi) = planned.irq {
        (lines.connect)(&event, gsi)?;
    }
    Ok(event)
}
