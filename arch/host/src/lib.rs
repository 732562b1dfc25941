//! Picks the backend of the build target.
//!
//! Besides the backends' own `kvm` modules this is the only place that asks for the target. A
//! target without a backend has no `HostPlatform`; everything that needs none still compiles.

/// The backend of the host this was built for.
#[cfg(target_arch = "x86_64")]
pub use arch_x86_64::X86_64 as HostPlatform;

#[cfg(target_arch = "aarch64")]
pub use arch_aarch64::Aarch64 as HostPlatform;

#[cfg(feature = "hello-guest")]
pub mod hello;
