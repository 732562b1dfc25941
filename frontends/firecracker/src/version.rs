//! What this program says that it is.

/// The version of Firecracker whose interface this is.
pub(crate) const VERSION: &str = "1.16.0";
