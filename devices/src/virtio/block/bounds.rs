//! How much a disk does at once, so that its end and its other events are never far.

/// Most requests at once.
pub(super) const MAX_IN_FLIGHT: usize = 1024;
/// With so many bytes in flight no request begins: a reset waits for them.
pub(super) const MOST_IN_FLIGHT: u64 = 256 << 20;
/// What a call that moves no data may take of the host's time, in bytes that could have been moved.
pub(super) const STEP: u64 = 8 << 20;
/// After so many bytes without io_uring other events have their turn, the end among them.
pub(super) const MOST_MOVED: u64 = 64 << 20;
