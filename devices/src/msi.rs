//! Interrupts as messages: a write that an interrupt controller takes for a signal.

/// What is written to tell the guest something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Where.
    pub address: u64,
    /// What.
    pub data: u32,
}
