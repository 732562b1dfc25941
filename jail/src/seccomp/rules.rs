//! Tables of system calls: what a thread may call, and what for.

use super::calls::Call;

/// One system call that a thread may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The call; an architecture that has none with this name passes over it.
    pub call: Call,
    /// With which arguments.
    pub only: Only,
    /// What needs it, for whoever reads the table.
    pub why: &'static str,
}

impl Rule {
    /// The call with any arguments.
    pub const fn any(call: Call, why: &'static str) -> Self {
        let only = Only::Any;
        Self { call, only, why }
    }

    /// The call when this argument is one of these.
    pub const fn one_of(
        call: Call,
        argument: u8,
        values: &'static [u32],
        why: &'static str,
    ) -> Self {
        Self::masked(call, argument, u32::MAX, values, why)
    }

    /// The call when these bits of the argument are one of these values.
    pub const fn masked(
        call: Call,
        argument: u8,
        mask: u32,
        values: &'static [u32],
        why: &'static str,
    ) -> Self {
        let only = Only::Bits {
            argument,
            mask,
            values,
        };
        Self { call, only, why }
    }

    /// The call is not carried out and gives this error, without being a violation: libraries try something else
    /// then. So it is whatever other rules say.
    pub const fn fails(call: Call, errno: u16, why: &'static str) -> Self {
        let only = Only::Fails(errno);
        Self { call, only, why }
    }
}

/// With which arguments a call may be made. Where several rules have it, one of them has to be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Only {
    /// Whatever the arguments are. The kernel decides such a call by its number, without running the filter.
    Any,
    /// The lower 32 bits of an argument, as far as the mask has them, are one of these values.
    Bits {
        /// Which argument; the first is 0.
        argument: u8,
        /// What counts of it.
        mask: u32,
        /// What it has to be.
        values: &'static [u32],
    },
    /// Never; it gives this error.
    Fails(u16),
}

/// What a thread may call for one purpose.
pub type Table = &'static [Rule];

/// What a thread is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role {
    /// How a violation names it.
    pub name: &'static str,
    /// What it needs.
    pub tables: &'static [Table],
}
