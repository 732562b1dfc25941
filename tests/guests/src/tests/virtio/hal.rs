//! What `virtio-drivers` needs of this guest: memory for queues, mapped one to one, and a heap for
//! the little that its drivers allocate.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicUsize, Ordering};

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

const POOL: usize = 256 << 10;

#[repr(C, align(4096))]
struct Pool {
    bytes: UnsafeCell<[u8; POOL]>,
    used: AtomicUsize,
}

// SAFETY: each part is handed out to one owner at a time, and one vCPU runs.
unsafe impl Sync for Pool {}

impl Pool {
    const fn new() -> Self {
        Self {
            bytes: UnsafeCell::new([0; POOL]),
            used: AtomicUsize::new(0),
        }
    }

    fn take(&self, len: usize, alignment: usize) -> Option<*mut u8> {
        let start = self
            .used
            .load(Ordering::Relaxed)
            .next_multiple_of(alignment);
        let end = start.checked_add(len).filter(|end| *end <= POOL)?;
        self.used.store(end, Ordering::Relaxed);
        Some(self.bytes.get().cast::<u8>().wrapping_add(start))
    }
}

static QUEUES: Pool = Pool::new();

/// Gives the last allocation back only: what drivers allocate for a request ends before the next
/// one, and the rest stays.
struct Heap(Pool);

#[global_allocator]
static HEAP: Heap = Heap(Pool::new());

// SAFETY: parts do not overlap: only the last one taken is given back.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // The pool is aligned to a page, and nobody asks for more.
        let place = self.0.take(layout.size(), layout.align());
        place.unwrap_or(ptr::null_mut())
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        let start = place.addr() - self.0.bytes.get().addr();
        if start + layout.size() == self.0.used.load(Ordering::Relaxed) {
            self.0.used.store(start, Ordering::Relaxed);
        }
    }
}

pub struct GuestHal;

// SAFETY: pages are zero, of static memory, never handed out twice; addresses are physical ones.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let place = QUEUES.take(pages * PAGE_SIZE, PAGE_SIZE);
        let place = place.and_then(NonNull::new).expect("the pool is empty");
        (place.addr().get() as PhysAddr, place)
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(address as *mut u8).expect("an address")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.addr().get() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}
