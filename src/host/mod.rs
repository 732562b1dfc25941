//! What the host offers: opening KVM, reading a platform's facts, and naming what is missing.

mod access;
mod check;
mod diagnose;
mod kernel_mode;
mod kvm;
mod landlock;
mod optional;

pub(crate) use kvm::open_kvm;
pub(crate) use optional::kernel_release;

pub use check::{Check, Level};
pub use diagnose::diagnose;
pub use kvm::probe;
