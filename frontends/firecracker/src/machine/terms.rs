//! What the parts of a machine have in common.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::metrics;
use crate::seccomp::Filters;

/// What comes of a request.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    Done,
    /// An answer, in JSON.
    Json(String),
}

impl Outcome {
    /// An answer, with its fields in their order.
    pub(crate) fn json(value: &impl Serialize) -> Self {
        // Such values cannot fail to become JSON.
        Self::Json(serde_json::to_string(value).unwrap_or_default())
    }
}

/// What the command line says about a machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) id: String,
    pub(crate) boot_timer: bool,
    pub(crate) pci: bool,
    /// The filters of its threads, if they have any.
    pub(crate) filters: Option<Arc<Filters>>,
}

/// Says in the log and in the metrics how long something took.
pub(super) fn took(name: &str, keys: &[&'static str], begun: Instant) {
    let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    for key in keys {
        metrics::set("latencies_us", key, took);
    }
    log::info!("'{name}' VMM action took {took} us.");
    log::info!("'{name}' API request took {took} us.");
}
