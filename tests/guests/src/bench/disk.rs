//! A virtio disk with one split queue (VIRTIO 1.3, 2.7 and 5.2), polled.
//!
//! Requests have fixed slots: header, data, status and descriptors of a slot are always the same
//! memory. As Linux does it, a request takes one descriptor of the queue where the device knows
//! indirect ones, else three.

use core::cell::UnsafeCell;

use crate::registers;
use crate::ring::{Descriptor, INDIRECT, NEXT, NO_DESCRIPTOR, Ring, WRITE, address, load, store};

/// The type of the device.
const DISK: u32 = 2;

/// Most requests in flight.
pub const DEPTH_MAX: usize = 128;
/// Most requests whose times are kept.
pub const LATENCIES_MAX: usize = 1 << 16;
/// The unit of places: each block of the disk begins with its own number, which is checked.
pub const BLOCK: u64 = 4096;
const SECTOR: u64 = 512;
/// Descriptors of a request.
const PARTS: usize = 3;
const DATA_BYTES: usize = 8 << 20;

/// All that the device reads and writes, and the times.
#[repr(C, align(4096))]
struct Memory {
    tables: [[Descriptor; PARTS]; DEPTH_MAX],
    headers: [[u64; 2]; DEPTH_MAX],
    status: [u8; DEPTH_MAX],
    latencies: [u32; LATENCIES_MAX],
    data: Data,
}

#[repr(C, align(4096))]
struct Data([u8; DATA_BYTES]);

struct Shared(UnsafeCell<Memory>);

// SAFETY: only one vCPU runs, and it has one `Disk` and one `Latencies`.
unsafe impl Sync for Shared {}

static MEMORY: Shared = Shared(UnsafeCell::new(Memory {
    tables: [[NO_DESCRIPTOR; PARTS]; DEPTH_MAX],
    headers: [[0; 2]; DEPTH_MAX],
    status: [0; DEPTH_MAX],
    latencies: [0; LATENCIES_MAX],
    data: Data([0; DATA_BYTES]),
}));

/// A pointer to a field of [`MEMORY`].
macro_rules! field {
    ($($field:tt)+) => {
        // SAFETY: only the address is taken, and indexes are checked.
        unsafe { &raw mut (*MEMORY.0.get()).$($field)+ }
    };
}

/// A running disk.
pub struct Disk {
    ring: Ring,
    bytes: u64,
    /// The block that each slot reads.
    blocks: [u64; DEPTH_MAX],
}

impl Disk {
    /// Starts the disk that the command line knows.
    pub fn start() -> Self {
        let registers = registers::find(DISK);
        Self {
            ring: Ring::start(registers, 0),
            bytes: registers.config(0) * SECTOR,
            blocks: [0; DEPTH_MAX],
        }
    }

    /// The size of the disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many requests of a size can be in flight.
    pub fn room(&self, len: u32) -> usize {
        let entries = usize::from(self.ring.size) / if self.ring.indirect { 1 } else { PARTS };
        entries.min(DATA_BYTES / len as usize).min(DEPTH_MAX)
    }

    /// Puts a read on the queue. The slot is not in use.
    pub fn push(&mut self, slot: usize, block: u64, len: u32) {
        self.blocks[slot] = block;
        store(field!(headers[slot]), [0, block * (BLOCK / SECTOR)]);
        store(field!(status[slot]), 0xff);
        let data = field!(data.0[slot * len as usize]);
        let parts = [
            (address(field!(headers[slot])), 16, NEXT),
            (address(data), len, NEXT | WRITE),
            (address(field!(status[slot])), 1, WRITE),
        ];
        let first = if self.ring.indirect {
            slot
        } else {
            slot * PARTS
        };
        for (place, (address, len, flags)) in parts.into_iter().enumerate() {
            let base = if self.ring.indirect { 0 } else { first };
            let descriptor = Descriptor {
                address,
                len,
                flags,
                next: (base + place + 1) as u16,
            };
            if self.ring.indirect {
                store(field!(tables[slot][place]), descriptor);
            } else {
                self.ring.describe(first + place, descriptor);
            }
        }
        if self.ring.indirect {
            let table = Descriptor {
                address: address(field!(tables[slot])),
                len: size_of::<[Descriptor; PARTS]>() as u32,
                flags: INDIRECT,
                next: 0,
            };
            self.ring.describe(slot, table);
        }
        self.ring.push(first as u16);
    }

    /// See [`Ring::announce`].
    pub fn announce(&mut self) -> bool {
        self.ring.announce()
    }

    /// The slot of the next request that has ended.
    pub fn ended(&mut self) -> Option<usize> {
        let (head, _) = self.ring.ended()?;
        let slot = head / if self.ring.indirect { 1 } else { PARTS };
        assert_eq!(load(field!(status[slot])), 0, "a request failed");
        Some(slot)
    }

    /// Checks what a request has read.
    pub fn check(&self, slot: usize, len: u32) {
        let data = field!(data.0[slot * len as usize]);
        assert_eq!(load(data.cast::<u64>()), self.blocks[slot], "wrong data");
    }
}

/// Room for the time of every request.
pub struct Latencies(&'static mut [u32; LATENCIES_MAX]);

impl Latencies {
    /// Takes the room; once, after [`Disk::start`].
    pub fn take() -> Self {
        let latencies: *mut [u32; LATENCIES_MAX] = field!(latencies);
        // SAFETY: nothing else refers to this field, and `main` calls this once.
        Self(unsafe { &mut *latencies })
    }

    /// Keeps a request's time.
    pub fn keep(&mut self, request: usize, ticks: u64) {
        self.0[request] = u32::try_from(ticks).unwrap_or(u32::MAX);
    }

    /// The first times, in order.
    pub fn sorted(&mut self, count: usize) -> &[u32] {
        let times = &mut self.0[..count];
        times.sort_unstable();
        times
    }
}
