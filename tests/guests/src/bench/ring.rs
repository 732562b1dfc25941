//! A split queue (VIRTIO 1.3, 2.7), polled. There is one.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering, fence};

use crate::registers::Registers;

/// Most entries.
pub const QUEUE_MAX: usize = 256;

pub const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
/// Flag of the available ring.
const NO_INTERRUPT: u16 = 1;
/// Flag of the used ring.
const NO_NOTIFY: u16 = 1;
/// An interrupt is wanted so many entries from now: never.
const FAR: u16 = 1 << 15;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
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

#[repr(C, align(4096))]
struct Memory {
    descriptors: [Descriptor; QUEUE_MAX],
    available: Available,
    used: Used,
}

struct Shared(UnsafeCell<Memory>);

// SAFETY: only one vCPU runs, and it has one `Ring`.
unsafe impl Sync for Shared {}

pub const NO_DESCRIPTOR: Descriptor = Descriptor {
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
pub fn load<T: Copy>(field: *const T) -> T {
    // SAFETY: a field of memory that is shared with the device, any content of which is valid.
    unsafe { ptr::read_volatile(field) }
}

/// Writes what the device may read at any time.
pub fn store<T>(field: *mut T, value: T) {
    // SAFETY: a field of memory that is shared with the device, which only this vCPU and the device write.
    unsafe { ptr::write_volatile(field, value) };
}

/// A field's physical address.
pub fn address<T>(field: *mut T) -> u64 {
    field.addr() as u64
}

/// A queue of a device that runs.
pub struct Ring {
    registers: Registers,
    queue: u32,
    pub size: u16,
    /// Whether the device knows indirect descriptors.
    pub indirect: bool,
    event_idx: bool,
    /// The index behind the last request, and what the device knows of.
    next: u16,
    announced: u16,
    /// The index of the next request to end.
    ended: u16,
}

impl Ring {
    /// Starts a device with this queue.
    pub fn start(registers: Registers, queue: u32) -> Self {
        assert!(!TAKEN.swap(true, Ordering::Relaxed), "there is one queue");
        let features = registers.negotiate(VERSION_1 | EVENT_IDX | INDIRECT_DESC);
        assert!(features & VERSION_1 != 0, "a legacy device");
        let size = registers.queue_size_max(queue).min(QUEUE_MAX as u32) as u16;
        store(field!(available.flags), NO_INTERRUPT);
        store(field!(available.used_event), FAR);
        registers.start(
            queue,
            size,
            address(field!(descriptors)),
            address(field!(available)),
            address(field!(used)),
        );
        Self {
            registers,
            queue,
            size,
            indirect: features & INDIRECT_DESC != 0,
            event_idx: features & EVENT_IDX != 0,
            next: 0,
            announced: 0,
            ended: 0,
        }
    }

    /// Writes a descriptor of the queue.
    pub fn describe(&self, entry: usize, descriptor: Descriptor) {
        store(field!(descriptors[entry]), descriptor);
    }

    /// Puts the chain that begins with this descriptor on the queue.
    pub fn push(&mut self, head: u16) {
        let place = usize::from(self.next % self.size);
        store(field!(available.heads[place]), head);
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
            self.registers.notify(self.queue);
        }
        wanted
    }

    /// What follows the entries of a ring.
    fn ring_end<T>(&self, entries: *mut T) -> *mut u16 {
        entries.wrapping_add(self.size.into()).cast()
    }

    /// The next chain that has ended: its first descriptor, and how many bytes were written.
    pub fn ended(&mut self) -> Option<(usize, u32)> {
        if load(field!(used.index)) == self.ended {
            return None;
        }
        fence(Ordering::Acquire);
        let place = usize::from(self.ended % self.size);
        let [head, len] = load(field!(used.ended[place]));
        self.ended = self.ended.wrapping_add(1);
        let never = self.ended.wrapping_add(FAR);
        store(self.ring_end(field!(available.heads).cast::<u16>()), never);
        Some((head as usize, len))
    }
}
