//! Picks the backend of the build target.
//!
//! It also knows the pure half of every backend by name, on any host.
//!
//! Besides the backends' own `kvm` modules this is the only place that asks for the target. A
//! target without a backend has no `HostPlatform`; everything that needs none still compiles.

use arch::Planner;
use arch_aarch64::Aarch64;
use arch_riscv64::Riscv64;
use arch_x86_64::X86_64;
use serde::Deserialize;
use serde::de::Deserializer;

/// The architectures that there are backends for, as `uname -m` names them.
pub const ARCHITECTURES: [&str; 3] = ["aarch64", "riscv64", "x86_64"];

/// The pure half of a backend, for a typical host; `None` for an architecture that has none.
#[must_use]
pub fn planner(arch: &str) -> Option<Box<dyn Planner>> {
    match arch {
        "aarch64" => Some(Box::new(Aarch64::typical())),
        "riscv64" => Some(Box::new(Riscv64::typical())),
        "x86_64" => Some(Box::new(X86_64::typical())),
        _ => None,
    }
}

/// Like [`planner`], for the host whose facts are given.
///
/// # Errors
/// When they are not the facts of such a host.
pub fn planner_with_facts<'de, D: Deserializer<'de>>(
    arch: &str,
    facts: D,
) -> Result<Option<Box<dyn Planner>>, D::Error> {
    Ok(match arch {
        "aarch64" => Some(Box::new(Aarch64::deserialize(facts)?)),
        "riscv64" => Some(Box::new(Riscv64::deserialize(facts)?)),
        "x86_64" => Some(Box::new(X86_64::deserialize(facts)?)),
        _ => None,
    })
}

/// The backend of the host this was built for.
#[cfg(target_arch = "x86_64")]
pub use arch_x86_64::X86_64 as HostPlatform;

#[cfg(target_arch = "aarch64")]
pub use arch_aarch64::Aarch64 as HostPlatform;

#[cfg(target_arch = "riscv64")]
pub use arch_riscv64::Riscv64 as HostPlatform;

#[cfg(feature = "hello-guest")]
pub mod hello;
