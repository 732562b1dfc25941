//! A virtio disk with one split queue (VIRTIO 1.3, 2.7 and 5.2), polled.
//!
//! Requests have fixed slots: header, data, status and descriptors of a slot are always the same
//! memory. As Linux does it, a request takes one descriptor of the queue where the device knows
//! indirect ones, else three.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering, fence};

use crate::registers::Registers;

/// Most requests in flight.
pub const DEPTH_MAX: usize = 128;
/// Most requests whose times are kept.
pub const LATENCIES_MAX: usize = 1 << 16;
/// The unit of places: each block of the disk begins with its own number, which is checked.
pub const BLOCK: u64 = 4096;
const SECTOR: u64 = 512;
const QUEUE_MAX: usize = 256;
/// Descriptors of a request.
const PARTS: usize = 3;
const DATA_BYTES: usize = 8 << 20;

const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Flag of the available ring.
const NO_INTERRUPT: u16 = 1;
/// Flag of the used ring.
const NO_NOTIFY: u16 = 1;
/// An interrupt is wanted so many entries from now: never.
const FAR: u16 = 1 << 15;

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

#[repr(C, align(16))]
struct Available {
    flags: u16,
    index: u16,
    heads: [u16; QUEUE_MAX],
    used_event: u16,
}

#[repr(C, align(16))]
struct Used {
    flags: u16,
    index: u16,
    ended: [[u32; 2]; QUEUE_MAX],
    avail_event: u16,
}

/// All that the device reads and writes, and the times.
#[repr(C, align(4096))]
struct Memory {
    descriptors: [Descriptor; QUEUE_MAX],
    available: Available,
    used: Used,
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

const NO_DESCRIPTOR: Descriptor = Descriptor {
    address: 0,
    len: 0,
    flags: 0,
    next: 0,
};

static MEMORY: Shared = Shared(UnsafeCell::new(Memory {
    descriptors: [NO_DESCRIPTOR; QUEUE_MAX],
    available: Available {
        flags: 0,
        index: 0,
        heads: [0; QUEUE_MAX],
        used_event: 0,
    },
    used: Used {
        flags: 0,
        index: 0,
        ended: [[0; 2]; QUEUE_MAX],
        avail_event: 0,
    },
    tables: [[NO_DESCRIPTOR; PARTS]; DEPTH_MAX],
    headers: [[0; 2]; DEPTH_MAX],
    status: [0; DEPTH_MAX],
    latencies: [0; LATENCIES_MAX],
    data: Data([0; DATA_BYTES]),
}));
static TAKEN: AtomicBool = AtomicBool::new(false);

/// A pointer to a field of [`MEMORY`].
macro_rules! field {
    ($($field:tt)+) => {
        // SAFETY: only the address is taken, and indexes are checked.
        unsafe { &raw mut (*MEMORY.0.get()).$($field)+ }
    };
}

/// Reads what the device may write at any time.
fn load<T: Copy>(field: *const T) -> T {
    // SAFETY: a field of `MEMORY`, any content of which is valid.
    unsafe { ptr::read_volatile(field) }
}

/// Writes what the device may read at any time.
fn store<T>(field: *mut T, value: T) {
    // SAFETY: a field of `MEMORY`, which only this vCPU and the device write.
    unsafe { ptr::write_volatile(field, value) };
}

/// A field's physical address.
fn address<T>(field: *mut T) -> u64 {
    field.addr() as u64
}

/// A running disk.
pub struct Disk {
    registers: Registers,
    bytes: u64,
    size: u16,
    indirect: bool,
    event_idx: bool,
    /// The index behind the last request, and what the device knows of.
    next: u16,
    announced: u16,
    /// The index of the next request to end.
    ended: u16,
    /// The block that each slot reads.
    blocks: [u64; DEPTH_MAX],
}

impl Disk {
    /// Starts the disk. There is one.
    pub fn start(registers: Registers) -> Self {
        assert!(!TAKEN.swap(true, Ordering::Relaxed), "there is one disk");
        let features = registers.negotiate(VERSION_1 | EVENT_IDX | INDIRECT_DESC);
        assert!(features & VERSION_1 != 0, "a legacy device");
        let size = registers.queue_size_max().min(QUEUE_MAX as u32) as u16;
        store(field!(available.flags), NO_INTERRUPT);
        store(field!(available.used_event), FAR);
        registers.start(
            size,
            address(field!(descriptors)),
            address(field!(available)),
            address(field!(used)),
        );
        Self {
            bytes: registers.config(0) * SECTOR,
            registers,
            size,
            indirect: features & INDIRECT_DESC != 0,
            event_idx: features & EVENT_IDX != 0,
            next: 0,
            announced: 0,
            ended: 0,
            blocks: [0; DEPTH_MAX],
        }
    }

    /// The size of the disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many requests of a size can be in flight.
    pub fn room(&self, len: u32) -> usize {
        let entries = usize::from(self.size) / if self.indirect { 1 } else { PARTS };
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
        let first = if self.indirect { slot } else { slot * PARTS };
        for (place, (address, len, flags)) in parts.into_iter().enumerate() {
            let (entry, base) = if self.indirect {
                (field!(tables[slot][place]), 0)
            } else {
                (field!(descriptors[first + place]), first)
            };
            let next = (base + place + 1) as u16;
            store(
                entry,
                Descriptor {
                    address,
                    len,
                    flags,
                    next,
                },
            );
        }
        if self.indirect {
            let table = Descriptor {
                address: address(field!(tables[slot])),
                len: size_of::<[Descriptor; PARTS]>() as u32,
                flags: INDIRECT,
                next: 0,
            };
            store(field!(descriptors[slot]), table);
        }
        let place = usize::from(self.next % self.size);
        store(field!(available.heads[place]), first as u16);
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the device what was pushed, and notifies it if it wants that; says whether it did.
    pub fn announce(&mut self) -> bool {
        let (old, new) = (self.announced, self.next);
        if old == new {
            return false;
        }
        fence(Ordering::Release);
        store(field!(available.index), new);
        self.announced = new;
        // The device writes its wish and then reads the index; we do the reverse.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = load(self.ring_end(field!(used.ended).cast::<[u32; 2]>()));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            load(field!(used.flags)) & NO_NOTIFY == 0
        };
        if wanted {
            self.registers.notify();
        }
        wanted
    }

    /// What follows the entries of a ring.
    fn ring_end<T>(&self, entries: *mut T) -> *mut u16 {
        entries.wrapping_add(self.size.into()).cast()
    }

    /// The slot of the next request that has ended.
    pub fn ended(&mut self) -> Option<usize> {
        if load(field!(used.index)) == self.ended {
            return None;
        }
        fence(Ordering::Acquire);
        let place = usize::from(self.ended % self.size);
        let [head, _] = load(field!(used.ended[place]));
        self.ended = self.ended.wrapping_add(1);
        let never = self.ended.wrapping_add(FAR);
        store(self.ring_end(field!(available.heads).cast::<u16>()), never);
        let slot = head as usize / if self.indirect { 1 } else { PARTS };
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
