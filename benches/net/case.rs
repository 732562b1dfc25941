//! What is measured of a network device, and what a run of it took.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Send,
    Receive,
}

/// What is measured.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) way: Way,
    /// Bytes of a frame.
    pub(crate) frame: usize,
    pub(crate) depth: u32,
    pub(crate) count: u32,
}

/// What a run took.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    pub(crate) cpu: f64,
    pub(crate) waited: f64,
    pub(crate) notifications: f64,
}
