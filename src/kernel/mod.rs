//! Kernels and initrds: opening what the user names, unpacking it, placing it, and saying what it is.

pub(crate) mod image;
pub(crate) mod inspect;
#[cfg(feature = "packed-kernels")]
pub(crate) mod unpack;

/// No kernel is larger, unpacked, in bytes: only what debuggers need is.
const MAX_UNPACKED: u64 = 512 << 20;
