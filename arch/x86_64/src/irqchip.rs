//! The interrupt chip as a model: KVM's in-kernel PIC and I/O APIC.

use arch::{Gsi, IrqModel};

use crate::layout;

/// The interrupt masks of both PICs as a PC's firmware leaves them. KVM's reset values would let
/// their interrupts through with the processor's exception vectors, to a kernel that does not use
/// PICs and so never touches them.
pub const PIC_MASK: u8 = 0xff;

/// The I/O APIC of the in-kernel interrupt chip; the local APICs and the PICs come with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoApic {
    /// Its APIC id, different from that of every vCPU where the 8 bits of the id allow it.
    pub id: u8,
    /// Guest physical address of its registers.
    pub address: u64,
    /// Number of input pins; GSI n is pin n.
    pub pins: u32,
}

impl IoApic {
    /// The chip of a machine with `vcpus` vCPUs, whose APIC ids count from 0.
    pub(crate) fn new(vcpus: u32) -> Self {
        // 255 is the broadcast id. Above it the id is no longer unique, which x2APIC guests accept.
        let id = u8::try_from(vcpus).ok().filter(|&id| id != u8::MAX);
        Self {
            id: id.unwrap_or(0),
            address: layout::IOAPIC.base,
            pins: layout::IOAPIC_PINS,
        }
    }
}

impl IrqModel for IoApic {
    fn lines(&self) -> std::ops::Range<Gsi> {
        0..self.pins
    }
}
