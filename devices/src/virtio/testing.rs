//! A driver for tests: rings in guest memory, filled by hand, well or badly.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::GuestRam;

pub(crate) const SIZE: u16 = 16;
pub(crate) const RAM: usize = 1 << 20;
pub(crate) const DESCRIPTORS: u64 = 0x1000;
pub(crate) const AVAILABLE: u64 = 0x2000;
pub(crate) const USED: u64 = 0x3000;
/// Where buffers may lie.
pub(crate) const DATA: u64 = 0x1_0000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), RAM)]).unwrap()
}

/// The registers of a queue that is set up.
pub(crate) fn queue() -> Queue {
    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_size(SIZE);
    queue.set_desc_table_address(Some(0x1000), Some(0));
    queue.set_avail_ring_address(Some(0x2000), Some(0));
    queue.set_used_ring_address(Some(0x3000), Some(0));
    queue.set_ready(true);
    queue
}

#[derive(Debug, Clone)]
pub(crate) struct Driver {
    pub(crate) ram: GuestRam,
    offered: u16,
    seen: u16,
}

impl Driver {
    pub(crate) fn new(ram: &GuestRam) -> Self {
        Self {
            ram: ram.clone(),
            offered: 0,
            seen: 0,
        }
    }

    pub(crate) fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.ram.write_obj(value, GuestAddress(address)).unwrap();
    }

    pub(crate) fn get<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.ram.read_obj(GuestAddress(address)).unwrap()
    }

    /// Writes a descriptor to any table.
    pub(crate) fn descriptor_at(
        &self,
        table: u64,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let high = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.put(table + 16 * u64::from(index), [address, high]);
    }

    pub(crate) fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_at(DESCRIPTORS, index, address, len, flags, next);
    }

    /// Makes a chain available.
    pub(crate) fn offer(&mut self, head: u16) {
        self.put(AVAILABLE + 4 + 2 * u64::from(self.offered % SIZE), head);
        self.offered = self.offered.wrapping_add(1);
        self.put(AVAILABLE + 2, self.offered);
    }

    /// Describes buffers (address, length, writable) from descriptor 0 on and offers them.
    pub(crate) fn request(&mut self, buffers: &[(u64, u32, bool)]) {
        for (index, &(address, len, writable)) in (0u16..).zip(buffers) {
            let last = usize::from(index) + 1 == buffers.len();
            let flags = if writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.descriptor(index, address, len, flags, index + 1);
        }
        self.offer(0);
    }

    /// What came back since the last call: heads and lengths.
    pub(crate) fn used(&mut self) -> Vec<(u32, u32)> {
        let index: u16 = self.get(USED + 2);
        let mut used = Vec::new();
        while self.seen != index {
            let [head, len]: [u32; 2] = self.get(USED + 4 + 8 * u64::from(self.seen % SIZE));
            used.push((head, len));
            self.seen = self.seen.wrapping_add(1);
        }
        used
    }
}
