//! Filters of system calls: those that threads have by default, and those that a user brings.

pub mod compile;
pub mod container;
mod filters;

pub(crate) use filters::{FilterFault, Filters};
