//! Places the functions of the PCI bus, the same on every architecture.

use crate::{
    AddressRange, DeviceKind, DevicePlan, PciPlan, PlanError, Resources, Space, VIRTIO_PCI_BAR,
    VirtioKind,
};

/// The most virtio devices of a bus: 32 device numbers, and the host bridge has the first.
const MAX_DEVICES: usize = 31;
/// The most of [`PciPlan::window64`], in bytes.
const WINDOW64_LEN: u64 = 32 << 30;
/// What its ends are multiples of.
const WINDOW64_UNIT: u64 = 1 << 30;

impl PciPlan {
    /// Bytes of [`PciPlan::ecam`]: 256 functions of 4 KiB each (PCI Express Base Specification
    /// 6.0, 7.2.2).
    pub const ECAM_LEN: u64 = 1 << 20;

    /// Plans the configuration space and a slot for each virtio device, in order from 1 on.
    /// `ports` is the place of the configuration ports, on architectures that have them.
    ///
    /// # Errors
    /// [`PlanError::Config`] when the bus has no slots for so many; [`PlanError::Allocation`] when
    /// their BARs do not fit [`PciPlan::window32`].
    pub fn devices(
        &self,
        virtio: &[VirtioKind],
        ports: Option<AddressRange>,
    ) -> Result<Vec<DevicePlan>, PlanError> {
        if virtio.len() > MAX_DEVICES {
            return Err(PlanError::Config {
                field: "transport".into(),
                value: "pci".to_owned(),
                cause: format!(
                    "there are {} virtio devices, and a PCI bus has room for {MAX_DEVICES}",
                    virtio.len()
                ),
                cure: "leave some out, or use transport=mmio".to_owned(),
            });
        }
        let device = |kind, space, range| DevicePlan {
            id: None,
            messages: None,
            kind,
            space,
            range,
            irq: None,
        };
        let mut devices = vec![device(DeviceKind::PciEcam, Space::Mmio, self.ecam)];
        devices.extend(ports.map(|ports| device(DeviceKind::PciPorts, Space::Pio, ports)));
        let mut bars = Resources::new(Space::Mmio, self.window32, 0..=0)?;
        for (slot, &kind) in (1..).zip(virtio) {
            let kind = DeviceKind::VirtioPci { kind, slot };
            devices.push(device(kind, Space::Mmio, bars.range(VIRTIO_PCI_BAR)?));
        }
        Ok(devices)
    }

    /// The window above RAM that ends at `ram_end`, and above 4 GiB, as far as guest physical
    /// addresses of `address_bits` bits leave room for one.
    #[must_use]
    pub fn window64_above(ram_end: u64, address_bits: u8) -> Option<AddressRange> {
        let limit = 1u64.checked_shl(address_bits.into()).unwrap_or(u64::MAX);
        let base = ram_end
            .max(1 << 32)
            .checked_next_multiple_of(WINDOW64_UNIT)?;
        let room = limit.saturating_sub(base);
        let len = (room - room % WINDOW64_UNIT).min(WINDOW64_LEN);
        (len > 0).then(|| AddressRange::new(base, len))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PLAN: PciPlan = PciPlan {
        ecam: AddressRange::new(0x3000_0000, PciPlan::ECAM_LEN),
        window32: AddressRange::new(0x4000_0000, 32 * VIRTIO_PCI_BAR),
        window64: None,
        first_msi_gsi: 24,
    };

    #[test]
    fn a_bus_has_31_slots_beside_the_host_bridge() {
        let devices = PLAN.devices(&[VirtioKind::Block; 31], None).unwrap();
        let slots = devices.iter().filter_map(|device| match device.kind {
            DeviceKind::VirtioPci { slot, .. } => Some(slot),
            _ => None,
        });
        assert!(slots.eq(1..=31));
        let error = PLAN.devices(&[VirtioKind::Block; 32], None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "transport=pci: there are 32 virtio devices, and a PCI bus has room for 31"
        );
    }

    #[test]
    fn ports_are_planned_where_there_are_some() {
        let ports = AddressRange::new(0xCF8, 8);
        let planned = PLAN.devices(&[], Some(ports)).unwrap();
        let kinds: Vec<_> = planned.iter().map(|device| device.kind).collect();
        assert_eq!(kinds, [DeviceKind::PciEcam, DeviceKind::PciPorts]);
        assert_eq!(planned[1].range, ports);
    }

    #[test]
    fn the_upper_window_lies_above_ram_and_within_the_address_bits() {
        let window = |ram_end, bits| PciPlan::window64_above(ram_end, bits);
        let gib = |base: u64, len: u64| Some(AddressRange::new(base << 30, len << 30));
        assert_eq!(window(256 << 20, 40), gib(4, 32));
        assert_eq!(window((5 << 30) + 4096, 40), gib(6, 32));
        assert_eq!(window(1 << 30, 34), gib(4, 12));
        assert_eq!(window(1 << 30, 32), None);
        assert_eq!(window(1 << 40, 40), None);
        assert_eq!(window(u64::MAX - 4095, 64), None);
    }
}
