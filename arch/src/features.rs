//! What a guest is told of its processor otherwise than the host has it.

use std::fmt;

/// Bits of a register by which a guest knows its processor: those that it finds clear, and set, whatever the host has. So
/// machines of a fleet of unlike hosts look alike, and one can go on where another was.
///
/// A guest that is not told of a feature may still use it: this is no protection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureBits {
    /// The register. On x86_64 `cpuid:LEAF.SUBLEAF:REGISTER`, as in `cpuid:0x7.0x0:ebx`; other platforms have none.
    pub register: String,
    /// These are clear.
    pub clear: u64,
    /// These are set.
    pub set: u64,
}

impl FeatureBits {
    /// No bits yet of this register.
    pub fn of(register: impl Into<String>) -> Self {
        Self {
            register: register.into(),
            clear: 0,
            set: 0,
        }
    }

    /// The register with these bits.
    #[must_use]
    pub fn apply(&self, register: u64) -> u64 {
        register & !self.clear | self.set
    }
}

/// As messages have them.
impl fmt::Display for FeatureBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            register,
            clear,
            set,
        } = self;
        write!(f, "{register},clear={clear:#x},set={set:#x}")
    }
}
