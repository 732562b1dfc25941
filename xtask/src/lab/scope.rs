//! How much of the lab a run does.

/// How much is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// What a change has to pass.
    Smoke,
    /// Every combination there is.
    Full,
}
