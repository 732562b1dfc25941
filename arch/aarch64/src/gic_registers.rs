//! Which registers of the interrupt controller are saved, and the order in which they are loaded.
//!
//! Sources: the GICv3 architecture specification (IHI 0069), chapter 12, for what they are; the kernel's
//! Documentation/virt/kvm/devices/arm-vgic-v3.rst and arm-vgic-its.rst for how KVM shows them.

use crate::gic::{FIRST_SPI, INTIDS};
use crate::state::Registers;

/// Registers that lie at equal distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bank {
    /// The first one's offset, or its encoding.
    pub first: u32,
    /// How many there are.
    pub count: u32,
    /// The distance from one to the next.
    pub step: u32,
    /// Where ones are written to clear what ones in these registers set: the first one's offset.
    pub clear: Option<u32>,
}

impl Bank {
    const fn new(first: u32, count: u32, step: u32) -> Self {
        Self {
            first,
            count,
            step,
            clear: None,
        }
    }

    /// A register by itself.
    const fn one(first: u32) -> Self {
        Self::new(first, 1, 4)
    }

    const fn words(first: u32, count: u32) -> Self {
        Self::new(first, count, 4)
    }

    const fn cleared_at(self, clear: u32) -> Self {
        Self {
            clear: Some(clear),
            ..self
        }
    }

    /// The places of the first so many.
    pub fn places(&self, count: usize) -> impl Iterator<Item = u32> + use<> {
        let Self { first, step, .. } = *self;
        (0..self.count).take(count).map(move |n| first + n * step)
    }

    /// Likewise, of those that clear.
    pub fn clearing(&self, count: usize) -> impl Iterator<Item = u32> + use<> {
        let clear = self.clear.map(|first| Self { first, ..*self });
        clear.into_iter().flat_map(move |bank| bank.places(count))
    }
}

/// Interrupts of the distributor, without the private ones.
const SPIS: u32 = INTIDS - FIRST_SPI;

/// The distributor. GICD_IIDR is first: it has the revision of what KVM does. Only an interrupt that is enabled in a
/// GIC that is enabled gets to its vCPU when it becomes pending.
pub const DISTRIBUTOR: [Bank; 10] = [
    Bank::one(0x8),                                // GICD_IIDR
    Bank::one(0x0),                                // GICD_CTLR
    Bank::one(0x10),                               // GICD_STATUSR
    Bank::words(0x80 + FIRST_SPI / 8, SPIS / 32),  // GICD_IGROUPR
    Bank::words(0x400 + FIRST_SPI, SPIS / 4),      // GICD_IPRIORITYR
    Bank::words(0xc00 + FIRST_SPI / 4, SPIS / 16), // GICD_ICFGR
    Bank::new(0x6000 + FIRST_SPI * 8, SPIS, 8),    // GICD_IROUTER, without Aff3
    Bank::words(0x100 + FIRST_SPI / 8, SPIS / 32).cleared_at(0x180 + FIRST_SPI / 8), // GICD_ISENABLER
    Bank::words(0x200 + FIRST_SPI / 8, SPIS / 32), // GICD_ISPENDR: the latches
    Bank::words(0x300 + FIRST_SPI / 8, SPIS / 32).cleared_at(0x380 + FIRST_SPI / 8), // GICD_ISACTIVER
];

/// A redistributor. Its tables cannot be moved once GICR_CTLR enables message-signalled interrupts.
pub const REDISTRIBUTOR: [Bank; 11] = [
    Bank::one(0x10),                          // GICR_STATUSR
    Bank::one(0x14),                          // GICR_WAKER
    Bank::words(0x70, 2),                     // GICR_PROPBASER
    Bank::words(0x78, 2),                     // GICR_PENDBASER
    Bank::one(0x0),                           // GICR_CTLR
    Bank::one(0x1_0080),                      // GICR_IGROUPR0
    Bank::words(0x1_0400, 8),                 // GICR_IPRIORITYR
    Bank::words(0x1_0c00, 2),                 // GICR_ICFGR
    Bank::one(0x1_0100).cleared_at(0x1_0180), // GICR_ISENABLER0
    Bank::one(0x1_0200),                      // GICR_ISPENDR0: the latches
    Bank::one(0x1_0300).cleared_at(0x1_0380), // GICR_ISACTIVER0
];

/// The levels of lines, 32 in one value.
pub const SHARED_LINES: [Bank; 1] = [Bank::new(FIRST_SPI, SPIS / 32, 32)];
/// Likewise, of a vCPU's own.
pub const PRIVATE_LINES: [Bank; 1] = [Bank::new(0, 1, 32)];

/// A system register's encoding.
const fn icc(crn: u32, crm: u32, op2: u32) -> u32 {
    3 << 14 | crn << 7 | crm << 3 | op2
}
/// Control of a vCPU's interface.
pub const ICC_CTLR: u32 = icc(12, 12, 4);
/// Registers of active priorities, by group; there are fewer where a vCPU has fewer priorities.
pub const ICC_AP: [u32; 2] = [icc(12, 8, 4), icc(12, 9, 0)];

/// The system registers of a vCPU's interface.
pub const SYSTEM: [Bank; 9] = [
    Bank::one(icc(12, 12, 5)),  // ICC_SRE_EL1
    Bank::one(ICC_CTLR),        // ICC_CTLR_EL1
    Bank::one(icc(4, 6, 0)),    // ICC_PMR_EL1
    Bank::one(icc(12, 8, 3)),   // ICC_BPR0_EL1
    Bank::one(icc(12, 12, 3)),  // ICC_BPR1_EL1
    Bank::new(ICC_AP[0], 4, 1), // ICC_AP0R<n>_EL1
    Bank::new(ICC_AP[1], 4, 1), // ICC_AP1R<n>_EL1
    Bank::one(icc(12, 12, 6)),  // ICC_IGRPEN0_EL1
    Bank::one(icc(12, 12, 7)),  // ICC_IGRPEN1_EL1
];

/// How many registers of active priorities there are for each group, by ICC_CTLR_EL1.
#[must_use]
pub const fn active_priorities(icc_ctlr: u64) -> usize {
    // PRIbits is one less than what there is.
    match (icc_ctlr >> 8) & 7 {
        0..=4 => 1,
        5 => 2,
        _ => 4,
    }
}

/// The ITS, but for GITS_CTLR. GITS_IIDR has the layout of the tables; GITS_CBASER resets GITS_CREADR.
pub const ITS: [Bank; 5] = [
    Bank::one(0x4),         // GITS_IIDR
    Bank::one(0x80),        // GITS_CBASER
    Bank::one(0x90),        // GITS_CREADR
    Bank::one(0x88),        // GITS_CWRITER
    Bank::new(0x100, 8, 8), // GITS_BASER<n>
];
/// GITS_CTLR, once the tables are read.
pub const ITS_CONTROL: [Bank; 1] = [Bank::one(0x0)];

/// What was saved of some banks, in their order. `None` when one is missing or too long; the file of a saved machine
/// may say anything.
#[must_use]
pub fn in_order<'a>(
    banks: &'a [Bank],
    saved: &'a [Registers],
) -> Option<Vec<(&'a Bank, &'a [u64])>> {
    let values = |bank: &'a Bank| {
        let mut saved = saved.iter();
        let (_, values) = saved.find(|(first, _)| *first == bank.first)?;
        let most = usize::try_from(bank.count).ok()?;
        (1..=most)
            .contains(&values.len())
            .then_some((bank, &**values))
    };
    banks.iter().map(values).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distributor_has_every_shared_interrupt() {
        let last = |first| {
            let bank = DISTRIBUTOR.iter().find(|bank| bank.first == first);
            bank.and_then(|bank| bank.places(usize::MAX).last())
        };
        assert_eq!(last(0x84), Some(0x9c));
        assert_eq!(last(0x420), Some(0x4fc));
        assert_eq!(last(0xc08), Some(0xc3c));
        assert_eq!(last(0x6100), Some(0x67f8));
        let clearing: Vec<_> = DISTRIBUTOR
            .iter()
            .flat_map(|bank| bank.clearing(1))
            .collect();
        assert_eq!(clearing, [0x184, 0x384]);
    }

    #[test]
    fn encodings_are_those_of_the_architecture() {
        assert_eq!(ICC_CTLR, 0xc664);
        assert_eq!(ICC_AP, [0xc644, 0xc648]);
        assert_eq!([0x400, 0x500, 0x600].map(active_priorities), [1, 2, 4]);
    }

    #[test]
    fn what_was_saved_is_loaded_in_order_or_not_at_all() {
        let banks = [Bank::one(8), Bank::words(0, 2)];
        let saved = vec![(0, vec![1, 2]), (8, vec![3])];
        let found = in_order(&banks, &saved).unwrap();
        assert_eq!(found, [(&banks[0], &[3][..]), (&banks[1], &[1, 2])]);
        for wrong in [
            vec![(0, vec![1, 2])],
            vec![(0, vec![1, 2]), (8, vec![])],
            vec![(0, vec![1, 2]), (8, vec![3, 4])],
        ] {
            assert_eq!(in_order(&banks, &wrong), None);
        }
    }
}
