//! What is measured of a disk, and what a run of it took.

use std::collections::BTreeMap;

/// How a case reads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Places {
    Random,
    Sequential,
}

/// What is measured.
#[derive(Debug)]
pub(crate) struct Case {
    /// The guest's name of it.
    pub(crate) bench: &'static str,
    pub(crate) places: Places,
    /// Bytes of a request.
    pub(crate) len: u32,
    pub(crate) depth: u32,
    pub(crate) count: u32,
}

/// What a run took.
#[derive(Debug, Default, Clone)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    /// Seconds of the measured thread.
    pub(crate) cpu: f64,
    /// Seconds that it was kept from a processor.
    pub(crate) waited: f64,
    /// What the guest said besides.
    pub(crate) said: BTreeMap<String, f64>,
}
