//! Forks: a machine becomes two, in two processes (docs/fork.md).
//!
//! What belongs to a machine that runs is in `src/vm`: `forking.rs` brings it to where it can be forked, `parked.rs` forks.

pub(crate) mod children;
pub(crate) mod copies;
pub(crate) mod forks;
pub(crate) mod order;
pub(crate) mod outputs;
pub(crate) mod process;
pub(crate) mod report;
pub(crate) mod told;
