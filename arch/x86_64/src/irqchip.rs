//! The interrupt chip as a model: KVM's local APICs, and an I/O APIC, which is KVM's as well, with the
//! PICs and the interval timer of a PC, or a device of the VMM.

use arch::{Gsi, IrqModel, WiredRoute};

use crate::map;

/// The interrupt masks of both PICs as a PC's firmware leaves them. KVM's reset values would let
/// their interrupts through with the processor's exception vectors, to a kernel that does not use
/// PICs and so never touches them.
pub const PIC_MASK: u8 = 0xff;

/// Pins of one PIC.
const PIC_PINS: u32 = 8;
/// The chips of KVM_SET_GSI_ROUTING (KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE, _IOAPIC).
pub(crate) const PIC_MASTER: u32 = 0;
pub(crate) const PIC_SLAVE: u32 = 1;
pub(crate) const IO_APIC: u32 = 2;

/// Who has the I/O APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeper {
    /// KVM, and PICs and the interval timer with it.
    Kvm,
    /// The VMM. There are no PICs and no interval timer.
    Vmm,
}

/// The I/O APIC; the local APICs are KVM's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoApic {
    /// Its APIC id, different from that of every vCPU where the 8 bits of the id allow it.
    pub id: u8,
    /// Guest physical address of its registers.
    pub address: u64,
    /// Number of input pins; GSI n is pin n.
    pub pins: u32,
    /// Who has it.
    pub keeper: Keeper,
    /// Whether there are APIC ids from 255 on, so that messages have destinations of 15 bits.
    pub wide_ids: bool,
}

/// Bits 14:8 of a destination in bits 11:5 of a message's address, as a guest writes them that knows
/// KVM_FEATURE_MSI_EXT_DEST_ID (Linux Documentation/virt/kvm/x86/cpuid.rst); bits 7:0 are in bits 19:12.
const EXTENDED_DESTINATION: u64 = 0x7f << 5;
/// Where KVM has them with KVM_X2APIC_API_USE_32BIT_IDS: from bit 40 on (api.rst, KVM_CAP_X2APIC_API).
const EXTENDED_SHIFT: u32 = 40 - 5;

impl IoApic {
    /// The chip of a machine with `vcpus` vCPUs, whose APIC ids count from 0.
    pub(crate) fn new(vcpus: u32, keeper: Keeper) -> Self {
        // 255 is the broadcast id. Above it the id is no longer unique, which x2APIC guests accept.
        let id = u8::try_from(vcpus).ok().filter(|&id| id != u8::MAX);
        Self {
            id: id.unwrap_or(0),
            address: map::IOAPIC.base,
            pins: map::pins(keeper == Keeper::Vmm).into(),
            keeper,
            wide_ids: keeper == Keeper::Vmm && vcpus > map::NARROW_VCPUS,
        }
    }
}

impl IrqModel for IoApic {
    fn lines(&self) -> std::ops::Range<Gsi> {
        0..self.pins
    }

    fn wired_routes(&self) -> Vec<WiredRoute> {
        if self.keeper == Keeper::Vmm {
            return Vec::new();
        }
        let pic = |gsi| WiredRoute {
            gsi,
            chip: if gsi < PIC_PINS {
                PIC_MASTER
            } else {
                PIC_SLAVE
            },
            pin: gsi % PIC_PINS,
        };
        let io_apic = |gsi| WiredRoute {
            gsi,
            chip: IO_APIC,
            pin: gsi,
        };
        let pics = (0..2 * PIC_PINS).map(pic);
        pics.chain(self.lines().map(io_apic)).collect()
    }

    fn message_address(&self, address: u64) -> u64 {
        if !self.wide_ids {
            return address;
        }
        // KVM ignores what a guest writes to the upper half as long as destinations have 8 bits.
        let address = address & u64::from(u32::MAX);
        let extended = address & EXTENDED_DESTINATION;
        (address ^ extended) | extended << EXTENDED_SHIFT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sixteen_lines_reach_a_pic_too() {
        let routes = IoApic::new(1, Keeper::Kvm).wired_routes();
        let of = |gsi| {
            let of_line = routes.iter().filter(|route| route.gsi == gsi);
            of_line
                .map(|route| (route.chip, route.pin))
                .collect::<Vec<_>>()
        };
        assert_eq!(of(4), [(0, 4), (2, 4)]);
        assert_eq!(of(8), [(1, 0), (2, 8)]);
        assert_eq!(of(15), [(1, 7), (2, 15)]);
        assert_eq!(of(23), [(2, 23)]);
        assert_eq!(routes.len(), 16 + 24);
    }

    #[test]
    fn kvm_is_told_of_destinations_beyond_8_bits_where_it_has_them() {
        let wide = IoApic::new(300, Keeper::Vmm);
        for (guest, kvm) in [
            (0xFEE0_0000, 0xFEE0_0000),
            // The APIC with id 0x12c, and the last that there is an id for.
            (0xFEE2_C020, 0x0000_0100_FEE2_C000),
            (0xFEEF_FFE4, 0x0000_7F00_FEEF_F004),
            // A hostile upper half.
            (0xFFFF_FFFF_FEE0_1000, 0xFEE0_1000),
        ] {
            assert_eq!(wide.message_address(guest), kvm, "{guest:#x}");
        }
        for narrow in [IoApic::new(255, Keeper::Vmm), IoApic::new(300, Keeper::Kvm)] {
            assert_eq!(narrow.message_address(0xFEE2_C020), 0xFEE2_C020);
        }
    }
}
