//! The interrupt controller as a model: a GICv3 with one redistributor per vCPU and an ITS.

use arch::{AddressRange, Gsi, IrqModel, WiredRoute};

/// Size of one redistributor: two frames of 64 KiB (GICv3 architecture specification, 12.10).
pub const REDISTRIBUTOR: u64 = 0x2_0000;
/// The first shared peripheral interrupt is INTID 32; GSI n is INTID 32 + n.
pub const FIRST_SPI: u32 = 32;
/// INTIDs of the distributor: a multiple of 32, at most 1020 (KVM_DEV_ARM_VGIC_GRP_NR_IRQS).
pub const INTIDS: u32 = 256;

/// The most vCPUs a machine can have, whatever KVM offers (KVM's own limit with a GICv3).
pub const MAX_VCPUS: u32 = 512;

/// The distributor of the interrupt controller.
pub const GIC_DISTRIBUTOR: AddressRange = AddressRange::new(0x0800_0000, 0x1_0000);
/// Its interrupt translation service: two frames of 64 KiB.
pub const GIC_ITS: AddressRange = AddressRange::new(0x0802_0000, 0x2_0000);
/// The redistributors of all vCPUs there can be.
pub const GIC_REDISTRIBUTORS: AddressRange =
    AddressRange::new(0x1000_0000, REDISTRIBUTOR * MAX_VCPUS as u64);

/// Where the parts of the controller are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GicV3 {
    /// The distributor.
    pub distributor: AddressRange,
    /// The redistributors, one after the other.
    pub redistributors: AddressRange,
    /// The interrupt translation service, for message-signalled interrupts.
    pub its: AddressRange,
    /// Number of INTIDs, private ones included.
    pub intids: u32,
}

impl GicV3 {
    /// The controller of a machine with `vcpus` vCPUs.
    pub(crate) fn new(vcpus: u32) -> Self {
        let len = REDISTRIBUTOR.saturating_mul(vcpus.into());
        Self {
            distributor: GIC_DISTRIBUTOR,
            redistributors: AddressRange::new(GIC_REDISTRIBUTORS.base, len),
            its: GIC_ITS,
            intids: INTIDS,
        }
    }
}

impl IrqModel for GicV3 {
    fn lines(&self) -> std::ops::Range<Gsi> {
        0..self.intids - FIRST_SPI
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
