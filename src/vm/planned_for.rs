//! Whose machine a plan is for, which says how much of this host counts.

/// Whose machine is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlannedFor {
    /// This host: what it has counts.
    ThisHost,
    /// Another one: its memory, network devices and the files that a VM would write are not known here.
    AnotherHost,
}
