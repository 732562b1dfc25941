//! Talking to a machine while it runs: commands and their answers, events, metrics, and the socket for other
//! processes.

pub(crate) mod answer;
pub(crate) mod command;
pub(crate) mod ending;
pub(crate) mod event;
#[cfg(feature = "control")]
mod fields;
#[cfg(feature = "snapshot")]
pub(crate) mod forking;
pub(crate) mod handle;
pub(crate) mod metrics;
pub(crate) mod requests;
#[cfg(feature = "snapshot")]
pub(crate) mod saving;
#[cfg(feature = "control")]
pub(crate) mod server;
