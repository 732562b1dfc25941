//! Lean machines: without what current kernels can do without. What that is, and which kernels can, each
//! architecture knows.

use serde::{Deserialize, Serialize};

use crate::kernel::LinuxVersion;

/// What was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lean {
    /// Lean where the kernel is known not to miss anything.
    #[default]
    Auto,
    /// Lean.
    On,
    /// The full machine.
    Off,
}

/// What is known of the kernel before the machine is planned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestKernel {
    /// Nothing.
    #[default]
    Unknown,
    /// The built-in guest.
    BuiltIn,
    /// A Linux of this version.
    Linux(LinuxVersion),
}

/// What a machine became, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeanChoice {
    /// Whether the machine is lean.
    pub lean: bool,
    /// The reason, in words.
    pub why: String,
}
