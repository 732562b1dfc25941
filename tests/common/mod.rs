//! Tiny guests; with the command line also the VMM as a process with a watchdog.

#![allow(dead_code, unused_imports)] // every test binary uses a part
#![allow(clippy::unwrap_used)]

#[cfg(feature = "snapshot")]
pub(crate) mod faults;
#[cfg(feature = "cli")]
mod guests;
mod kernels;
#[cfg(all(feature = "cli", feature = "snapshot"))]
pub(crate) mod offspring;
pub(crate) mod pool;
#[cfg(feature = "cli")]
mod process;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tracer;
#[cfg(feature = "cli")]
pub(crate) mod trial;

#[cfg(feature = "cli")]
pub(crate) use guests::*;
pub(crate) use kernels::*;
#[cfg(feature = "cli")]
pub(crate) use process::*;
