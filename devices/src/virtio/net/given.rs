//! Tap devices that another part of the program, or another program, opens for a network device.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::tap::Tap;
use super::{Net, NetError};
use crate::config::NetConfig;

impl Net {
    /// Opens a tap device for a network device with one pair of queues, or creates it, and nothing else: for whoever
    /// names the descriptor in a configuration later.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn open_tap(name: &str) -> Result<OwnedFd, NetError> {
        let tap = Tap::open(name, 1)?.pop().ok_or(NetError::NoQueueLeft)?;
        Ok(tap.into_fd())
    }

    /// A device with one pair of queues on an open descriptor of a tap device.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn on_tap(tap: BorrowedFd<'_>, config: &NetConfig) -> Result<Self, NetError> {
        Self::check_values(config)?;
        Self::on(vec![Tap::inherit(tap.as_raw_fd())?], config)
    }
}
