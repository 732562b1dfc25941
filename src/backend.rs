//! The backend of the host that this library is built for, the pure halves of all of them, and the guest that comes with
//! the backend: the one place that names them.

#[cfg(feature = "host")]
pub use arch_host::{ARCHITECTURES, HostPlatform, planner, planner_with_facts};

/// The guest that is part of the library, when it was built in.
#[must_use]
pub fn hello_guest() -> Option<&'static [u8]> {
    #[cfg(all(feature = "host", feature = "hello-guest"))]
    return arch_host::hello::HELLO;
    #[cfg(not(all(feature = "host", feature = "hello-guest")))]
    None
}
