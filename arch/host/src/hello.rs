//! The built-in guest of the build target; `build.rs` compiles it.

/// The image, when one was built in: in the first kernel format of its architecture.
#[cfg(has_hello)]
pub const HELLO: Option<&[u8]> = Some(include_bytes!(concat!(env!("OUT_DIR"), "/hello")));

/// The image, when one was built in: there is none for this target.
#[cfg(not(has_hello))]
pub const HELLO: Option<&[u8]> = None;
