//! Kernels and initrds: opening what the user names, unpacking it, placing it, and saying what it is.

pub(crate) mod image;
pub(crate) mod inspect;
#[cfg(feature = "packed-kernels")]
pub(crate) mod unpack;
