//! The metadata of a machine: set and read at any time; who reaches it is said before the start.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::terms::Outcome;
use crate::mmds::{Mmds, MmdsConfig, WriteError};
use crate::texts::Fault;
use crate::texts::mmds::{NO_INTERFACE, UNKNOWN_INTERFACE, WRONG_ADDRESS};

/// What is asked of the data.
#[derive(Debug)]
pub(super) enum Access {
    Read,
    Put(serde_json::Value),
    Patch(serde_json::Value),
}

fn lock(mmds: &Mutex<Mmds>) -> MutexGuard<'_, Mmds> {
    mmds.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads or changes the data.
pub(super) fn access(
    mmds: &Mutex<Mmds>,
    is_started: bool,
    access: Access,
) -> Result<Outcome, Fault> {
    let mut mmds = lock(mmds);
    if is_started && mmds.config.is_none() {
        // No guest will ever read it.
        return Err(Fault::NoMetadata);
    }
    let written = match access {
        Access::Read => return Ok(Outcome::Json(mmds.all())),
        Access::Put(data) => mmds.put(data),
        Access::Patch(patch) => mmds.patch(patch),
    };
    match written {
        Ok(()) => Ok(Outcome::Done),
        Err(WriteError::Nothing) => Err(Fault::NoMetadata),
        Err(WriteError::TooLarge) => Err(Fault::TooMuchMetadata),
    }
}

/// Says who reaches the service, and how. `networks` are the ids of network devices that there are.
pub(super) fn configure(
    mmds: &Mutex<Mmds>,
    config: MmdsConfig,
    networks: &[&str],
) -> Result<(), Fault> {
    let wrong = |text| Err(Fault::Mmds(text));
    let ids = &config.network_interfaces;
    if !config.has_legal_address() {
        return wrong(WRONG_ADDRESS);
    }
    if ids.is_empty() {
        return wrong(NO_INTERFACE);
    }
    if !ids.iter().all(|id| networks.contains(&id.as_str())) {
        return wrong(UNKNOWN_INTERFACE);
    }
    lock(mmds).configure(config);
    Ok(())
}

/// The same, of a machine that was saved: who reaches it was checked when it was said, and the machine's devices are
/// checked.
pub(super) fn restore(mmds: &Mutex<Mmds>, config: MmdsConfig) {
    lock(mmds).configure(config);
}

/// The configuration as clients see it.
pub(super) fn shown(mmds: &Mutex<Mmds>) -> Option<MmdsConfig> {
    let config = lock(mmds).config.clone()?;
    Some(MmdsConfig {
        ipv4_address: Some(config.address()),
        ..config
    })
}
