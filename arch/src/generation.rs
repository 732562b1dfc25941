//! The VM generation ID (Microsoft, "Virtual Machine Generation ID"): 16 bytes of guest memory that are others in every
//! machine that goes on from one saved state, so that a guest knows that it is a copy and makes its random numbers
//! anew.

use std::borrow::Cow;

use crate::{AddressRange, GenerationId, Gsi, MachinePlan, Reserved};

impl GenerationId {
    /// Bytes of an ID.
    pub const LEN: u64 = 16;
    /// What the page around it is called.
    const NAME: &str = "VM generation ID";

    /// At the end of a page that has nothing else.
    #[must_use]
    pub const fn in_page(page: AddressRange, irq: Option<Gsi>) -> Self {
        let base = page.end().saturating_sub(Self::LEN);
        Self {
            range: AddressRange::new(base, Self::LEN),
            irq,
        }
    }

    /// That page, as a plan reserves it.
    #[must_use]
    pub const fn reserved(page: AddressRange) -> Reserved {
        Reserved {
            name: Cow::Borrowed(Self::NAME),
            range: page,
        }
    }

    /// Whether it lies in RAM of a machine, as a whole.
    #[must_use]
    pub fn is_in_ram_of(&self, plan: &MachinePlan) -> bool {
        let end = self.range.base.checked_add(Self::LEN);
        self.range.len == Self::LEN
            && end.is_some()
            && plan.ram.iter().any(|ram| ram.contains(&self.range))
    }
}
