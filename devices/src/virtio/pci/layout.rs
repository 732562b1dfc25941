//! Where a function has its parts: the BAR, and the capabilities that tell of them.

use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_NET, VIRTIO_ID_VSOCK,
};

use crate::pci::Config;

/// Every virtio device, and the number that its type is added to (4.1.2).
pub(super) const VENDOR: u16 = 0x1af4;
pub(super) const FIRST_DEVICE: u16 = 0x1040;
/// 1 or more for devices without a legacy interface.
pub(super) const REVISION: u8 = 1;

/// Where the parts of the BAR are.
pub(super) const COMMON: u64 = 0x0000;
pub(super) const ISR: u64 = 0x1000;
pub(super) const DEVICE: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
pub(super) const TABLE: u64 = 0x4000;
pub(super) const PENDING: u64 = 0x5000;
pub(super) const PAGE: u64 = 0x1000;
pub(super) const PAGE_LEN: u32 = 0x1000;
/// Bytes of the BAR.
pub(super) const BAR: u32 = 0x8000;
/// Bytes of the common configuration (4.1.4.3).
pub(super) const COMMON_LEN: usize = 0x38;
/// Bytes from one queue's notification to the next.
pub(super) const NOTIFY_STEP: u32 = 4;

/// Parts of the BAR, as capabilities name them (4.1.4): common configuration, notifications,
/// interrupt status, the device's configuration, accesses through the configuration space.
pub(super) const COMMON_PART: u8 = 1;
pub(super) const NOTIFY_PART: u8 = 2;
pub(super) const ISR_PART: u8 = 3;
pub(super) const DEVICE_PART: u8 = 4;
pub(super) const ACCESS_PART: u8 = 5;

/// Capability ids (PCI Local Bus Specification 3.0, appendix H).
pub(super) const VENDOR_SPECIFIC: u8 = 0x09;
pub(super) const MSI_X: u8 = 0x11;
/// In the MSI-X capability: the control word, and its bits that the guest may write.
pub(super) const MSIX_CONTROL: usize = 2;
pub(super) const MSIX_WRITABLE: u16 = 0xc000;
/// In the capability for accesses to the BAR (4.1.4.9): where, how many bytes, the bytes.
pub(super) const ACCESS_BAR: usize = 4;
pub(super) const ACCESS_OFFSET: usize = 8;
pub(super) const ACCESS_LEN: usize = 12;
pub(super) const ACCESS_DATA: usize = 16;

/// Class, subclass, programming interface of a type of device (PCI Local Bus Specification 3.0,
/// appendix D).
pub(super) fn class(id: u32) -> [u8; 3] {
    match id {
        VIRTIO_ID_NET => [0x02, 0x00, 0x00],
        VIRTIO_ID_BLOCK => [0x01, 0x80, 0x00],
        VIRTIO_ID_CONSOLE => [0x07, 0x80, 0x00],
        VIRTIO_ID_VSOCK => [0x02, 0x80, 0x00],
        // It fits no class.
        _ => [0xff, 0x00, 0x00],
    }
}

/// Says where in the BAR the parts are (4.1.4). Gives the offsets of the capability for accesses
/// through the configuration space, and of MSI-X.
pub(super) fn add_capabilities(config: &mut Config, queues: usize) -> (usize, usize) {
    let queues = u32::try_from(queues).unwrap_or(0);
    let part = |kind: u8, offset: u64, len: u32, more: &[u8]| {
        let size = u8::try_from(16 + more.len()).unwrap_or(u8::MAX);
        // Length, type, BAR 0, id, two bytes of nothing.
        let mut content = vec![size, kind, 0, 0, 0, 0];
        content.extend(u32::try_from(offset).unwrap_or(0).to_le_bytes());
        content.extend(len.to_le_bytes());
        content.extend(more);
        content
    };
    let common = u32::try_from(COMMON_LEN).unwrap_or(0);
    let step = NOTIFY_STEP.to_le_bytes();
    for content in [
        part(COMMON_PART, COMMON, common, &[]),
        part(NOTIFY_PART, NOTIFY, queues * NOTIFY_STEP, &step),
        part(ISR_PART, ISR, 1, &[]),
        part(DEVICE_PART, DEVICE, PAGE_LEN, &[]),
    ] {
        config.add_capability(VENDOR_SPECIFIC, &content);
    }
    let content = part(ACCESS_PART, 0, 0, &[0; 4]);
    let access = config.add_capability(VENDOR_SPECIFIC, &content);
    config.allow(access + ACCESS_BAR, &[0xff]);
    config.allow(access + ACCESS_OFFSET, &[0xff; 12]);
    // The number of messages less one; table and pending bits, both in BAR 0.
    let mut content = u16::try_from(queues).unwrap_or(0).to_le_bytes().to_vec();
    for offset in [TABLE, PENDING] {
        content.extend(u32::try_from(offset).unwrap_or(0).to_le_bytes());
    }
    let msix = config.add_capability(MSI_X, &content);
    config.allow(msix + MSIX_CONTROL, &MSIX_WRITABLE.to_le_bytes());
    (access, msix)
}
