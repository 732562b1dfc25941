//! Tap devices that another part of the program, or another program, opens for a network device.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::tap::Tap;
use super::{Net, NetError};
use crate::config::NetConfig;

impl Net {
    /// Opens a tap device for a network device with so many pairs of queues, or creates it, and nothing else: for whoever
    /// hands the descriptors on, one for each pair.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn open_tap(name: &str, queues: u16) -> Result<Vec<OwnedFd>, NetError> {
        let taps = Tap::open(name, queues)?;
        Ok(taps.into_iter().map(Tap::into_fd).collect())
    }

    /// A device on open descriptors of a tap device, one for each pair of queues.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn on_tap(queues: &[BorrowedFd<'_>], config: &NetConfig) -> Result<Self, NetError> {
        Self::check_values(config)?;
        let taps = queues.iter().map(|queue| Tap::inherit(queue.as_raw_fd()));
        Self::on(taps.collect::<Result<_, _>>()?, config)
    }
}
