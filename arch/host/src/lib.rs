//! Picks the backend of the build target.
//!
//! It also knows the pure half of every backend by name, on any host.
//!
//! Besides the backends' own `kvm` modules this is the only place that asks for the target. A
//! target without a backend has no `HostPlatform`; everything that needs none still compiles.

use arch::Planner;
use serde::Deserialize;
use serde::de::Deserializer;

/// Everything that follows from the list of backends: each the name of its architecture, as `uname -m` and
/// the compiler have it, and its platform.
macro_rules! backends {
    ($($arch:tt => $platform:path,)*) => {
        /// The architectures that there are backends for, as `uname -m` names them.
        pub const ARCHITECTURES: &[&str] = &[$($arch),*];

        /// The pure half of a backend, for a typical host; `None` for an architecture that has none.
        #[must_use]
        pub fn planner(arch: &str) -> Option<Box<dyn Planner>> {
            match arch {
                $($arch => Some(Box::new(<$platform>::typical())),)*
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
                $($arch => Some(Box::new(<$platform>::deserialize(facts)?)),)*
                _ => None,
            })
        }

        $(pub use $platform;)*

        $(
            /// The backend of the host this was built for.
            #[cfg(target_arch = $arch)]
            pub use $platform as HostPlatform;
        )*
    };
}

backends! {
    "aarch64" => arch_aarch64::Aarch64,
    "riscv64" => arch_riscv64::Riscv64,
    "x86_64" => arch_x86_64::X86_64,
}

#[cfg(feature = "hello-guest")]
pub mod hello;
