//! What this program has around a VM that runs.

use std::ffi::c_int;
use std::os::fd::OwnedFd;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
#[cfg(feature = "control")]
use vmm_reference::ControlServer;
use vmm_reference::{Error, Vm};

use super::notify::Notifier;
use super::signals::{signal_error, signals};
use super::terminal::RawTerminal;
use super::timeline;

/// What this program has around a VM that runs.
pub(super) struct Around {
    #[cfg_attr(not(all(feature = "control", feature = "snapshot")), allow(dead_code))]
    pub(super) notifier: Option<Notifier>,
    #[cfg(feature = "control")]
    #[cfg_attr(not(feature = "snapshot"), allow(dead_code))]
    pub(super) control: Option<ControlServer>,
    #[cfg_attr(not(all(feature = "control", feature = "snapshot")), allow(dead_code))]
    pub(super) terminal: Option<RawTerminal>,
    pub(super) timeline: Option<timeline::Output>,
    /// The signals that this process was started to ignore.
    #[cfg(all(feature = "control", feature = "snapshot"))]
    pub(super) ignored: u64,
}

/// Signals that end a VM.
pub(super) struct EndSignals {
    stop: Option<OwnedFd>,
    shutdown: Option<OwnedFd>,
}

impl EndSignals {
    /// From now on, but for those of the set `ignored`.
    pub(super) fn catch(ignored: u64) -> Result<Self, Error> {
        let catch = |of: &[c_int]| signals(of, ignored).map_err(signal_error);
        Ok(Self {
            stop: catch(&[SIGINT, SIGHUP])?,
            shutdown: catch(&[SIGTERM])?,
        })
    }

    /// Those that have come as well.
    pub(super) fn end(self, vm: &mut Vm) {
        if let Some(signals) = self.stop {
            vm.stop_on(signals);
        }
        if let Some(signals) = self.shutdown {
            vm.shutdown_on(signals);
        }
    }
}
