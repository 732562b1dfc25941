//! The built-in guest of the build target.

/// The image, when one was built in.
pub const HELLO: Option<&[u8]> = None;
