//! Hands out addresses and interrupts to devices, through vm-allocator.

use std::ops::RangeInclusive;

use vm_allocator::{AddressAllocator, AllocPolicy, IdAllocator};

use crate::{AddressRange, DeviceKind, DevicePlan, Gsi, PlanError, Space, VirtioKind};

/// A window of addresses (or ports) and the interrupts that devices may have, handed out from
/// below.
#[derive(Debug)]
pub struct Resources {
    space: Space,
    addresses: AddressAllocator,
    gsis: IdAllocator,
}

impl Resources {
    /// Everything in these ranges is free.
    ///
    /// # Errors
    /// When a range is empty.
    pub fn new(
        space: Space,
        window: AddressRange,
        gsis: RangeInclusive<Gsi>,
    ) -> Result<Self, PlanError> {
        Ok(Self {
            space,
            addresses: AddressAllocator::new(window.base, window.len)
                .map_err(PlanError::allocation("a window for devices"))?,
            gsis: IdAllocator::new(*gsis.start(), *gsis.end())
                .map_err(PlanError::allocation("interrupts for devices"))?,
        })
    }

    /// Takes `len` addresses, aligned to the next power of two.
    ///
    /// # Errors
    /// When the window is full.
    pub fn range(&mut self, len: u64) -> Result<AddressRange, PlanError> {
        let alignment = len.checked_next_power_of_two().unwrap_or(1);
        let range = self
            .addresses
            .allocate(len, alignment, AllocPolicy::FirstMatch)
            .map_err(PlanError::allocation("the registers of a device"))?;
        Ok(AddressRange::new(range.start(), range.len()))
    }

    /// Takes an interrupt.
    ///
    /// # Errors
    /// When they are used up.
    pub fn line(&mut self) -> Result<Gsi, PlanError> {
        self.gsis
            .allocate_id()
            .map_err(PlanError::allocation("the interrupt of a device"))
    }

    /// Places a device with `len` bytes of registers and an interrupt of its own.
    ///
    /// # Errors
    /// When the window or the interrupts are used up.
    pub fn device(&mut self, kind: DeviceKind, len: u64) -> Result<DevicePlan, PlanError> {
        let range = self.range(len)?;
        let gsi = self.line()?;
        Ok(DevicePlan {
            id: None,
            messages: None,
            kind,
            space: self.space,
            range,
            irq: Some(gsi),
        })
    }
}

/// The window for planned devices, of which the first `own` bytes are the embedder's.
///
/// # Errors
/// When they are no whole pages, or more than a part of it.
pub fn window_above(window: AddressRange, own: u64) -> Result<AddressRange, PlanError> {
    /// As much as any device could want, and little beside the window.
    const MOST: u64 = 16 << 20;
    if own > MOST || !own.is_multiple_of(VIRTIO_MMIO) {
        return Err(PlanError::Config {
            field: "own-window".into(),
            value: own.to_string(),
            cause: "it is whole pages of 4096 bytes, 16 MiB at most".to_owned(),
            cure: "give as much as the embedder's devices need, rounded up".to_owned(),
        });
    }
    Ok(AddressRange::new(
        window.base.saturating_add(own),
        window.len.saturating_sub(own),
    ))
}

/// Bytes that each virtio device behind the MMIO transport gets: a page, so that it can be mapped alone.
const VIRTIO_MMIO: u64 = 0x1000;

/// Plans virtio devices with registers and an interrupt each, in order.
///
/// # Errors
/// [`PlanError::Config`] when there are not enough interrupts; [`PlanError::Allocation`] when their
/// registers do not fit the window.
pub fn virtio_mmio(
    window: AddressRange,
    gsis: RangeInclusive<Gsi>,
    virtio: &[VirtioKind],
) -> Result<Vec<DevicePlan>, PlanError> {
    if virtio.len() > gsis.clone().count() {
        return Err(PlanError::Config {
            field: "transport".into(),
            value: "mmio".to_owned(),
            cause: format!(
                "there are {} virtio devices, and interrupts for {}",
                virtio.len(),
                gsis.count()
            ),
            cure: "leave some out, or use transport=pci".to_owned(),
        });
    }
    let mut resources = Resources::new(Space::Mmio, window, gsis)?;
    let device = |kind| resources.device(DeviceKind::VirtioMmio(kind), VIRTIO_MMIO);
    virtio.iter().copied().map(device).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_handed_out_is_never_handed_out_again() {
        let window = AddressRange::new(0x1000, 0x3000);
        let mut resources = Resources::new(Space::Mmio, window, 5..=6).unwrap();
        let mut device = || resources.device(DeviceKind::Pl011, 0x1000);
        let (first, second) = (device().unwrap(), device().unwrap());
        assert_eq!(first.range, AddressRange::new(0x1000, 0x1000));
        assert_eq!(second.range, AddressRange::new(0x2000, 0x1000));
        assert_eq!((first.irq, second.irq), (Some(5), Some(6)));
        assert!(matches!(device(), Err(PlanError::Allocation { .. })));
    }

    #[test]
    fn a_machine_has_no_more_virtio_devices_than_interrupts() {
        let window = AddressRange::new(0x10_0000, 0x10_0000);
        let devices = |count| virtio_mmio(window, 9..=23, &vec![VirtioKind::Block; count]);
        let planned = devices(15).unwrap();
        assert!(
            planned
                .iter()
                .map(|device| device.irq)
                .eq((9..=23).map(Some))
        );
        assert_eq!(
            devices(16).unwrap_err().to_string(),
            "transport=mmio: there are 16 virtio devices, and interrupts for 15"
        );
    }
}
