//! System calls that a thread keeps: tables, filters made of them, and what becomes of a call that is in none.

mod calls;
mod filter;
mod rules;
mod tree;
mod violation;

pub use calls::Call;
pub use filter::{Filter, FilterError, architecture};
pub use rules::{Only, Role, Rule, Table};
pub use violation::{Violation, prepare, warm_up};

pub(crate) use violation::available;
