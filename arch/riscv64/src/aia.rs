//! The interrupt controllers as a model (RISC-V Advanced Interrupt Architecture 1.0): a message
//! controller (IMSIC) for each vCPU, and one for wired interrupts (APLIC) that turns them into
//! messages.

use arch::{AddressRange, Gsi, IrqModel, WiredRoute};

/// Registers of the APLIC without those of the vCPUs, and of each vCPU, which it has for its other
/// mode (KVM_DEV_RISCV_APLIC_SIZE).
const APLIC: u64 = 0x4000;
const APLIC_VCPU: u64 = 32;
/// The page of one vCPU's message controller (KVM_DEV_RISCV_IMSIC_SIZE).
pub const IMSIC: u64 = 0x1000;
/// The most wired interrupts. Source 0 is none.
pub const SOURCES: u32 = 96;

/// The most vCPUs a machine can have, whatever KVM offers.
pub const MAX_VCPUS: u32 = 512;

/// The controller of wired interrupts, as far as it may grow.
pub const APLIC_WINDOW: AddressRange = AddressRange::new(0x0D00_0000, 0x10_0000);
/// The message controllers of all vCPUs there can be.
pub const IMSICS: AddressRange = AddressRange::new(0x2800_0000, IMSIC * MAX_VCPUS as u64);

/// Where the parts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aia {
    /// The controller of wired interrupts.
    pub aplic: AddressRange,
    /// Wired interrupts it has: 1 to this.
    pub sources: u32,
    /// The message controllers, one after the other.
    pub imsics: AddressRange,
    /// Interrupt identities of each.
    pub identities: u32,
    /// Bits of an address that say which vCPU's it is.
    pub hart_bits: u32,
}

/// Wired interrupts of a machine: each becomes a message, so KVM gives it no more than a message controller
/// has identities (Linux arch/riscv/kvm/aia_device.c, aia_config). Some hosts have 63.
pub(crate) fn sources(identities: u32) -> u32 {
    SOURCES.min(identities)
}

impl Aia {
    /// The controllers of a machine with `vcpus` vCPUs.
    pub(crate) fn new(vcpus: u32, identities: u32) -> Self {
        let aplic = APLIC_VCPU
            .saturating_mul(vcpus.into())
            .saturating_add(APLIC)
            .next_multiple_of(APLIC);
        Self {
            aplic: AddressRange::new(APLIC_WINDOW.base, aplic),
            sources: sources(identities),
            imsics: AddressRange::new(IMSICS.base, IMSIC.saturating_mul(vcpus.into())),
            identities,
            hart_bits: u32::BITS - vcpus.saturating_sub(1).leading_zeros(),
        }
    }

    /// The vCPUs, each of which has a message controller.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        u32::try_from(self.imsics.len / IMSIC).unwrap_or(u32::MAX)
    }
}

impl IrqModel for Aia {
    fn lines(&self) -> std::ops::Range<Gsi> {
        1..self.sources + 1
    }

    fn wired_routes(&self) -> Vec<WiredRoute> {
        let route = |gsi| WiredRoute {
            gsi,
            chip: 0,
            pin: gsi,
        };
        self.lines().map(route).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_controllers_grow_with_the_vcpus() {
        for (vcpus, aplic, imsics, hart_bits) in [
            (1, 0x8000, 0x1000, 0),
            (2, 0x8000, 0x2000, 1),
            (3, 0x8000, 0x3000, 2),
            (512, 0x8000, 0x20_0000, 9),
            (513, 0xc000, 0x20_1000, 10),
        ] {
            let aia = Aia::new(vcpus, 255);
            assert_eq!(aia.aplic.len, aplic, "{vcpus}");
            assert_eq!(aia.imsics.len, imsics, "{vcpus}");
            assert_eq!(aia.hart_bits, hart_bits, "{vcpus}");
        }
    }
}
