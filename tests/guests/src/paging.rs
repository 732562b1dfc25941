//! Mappings above 4 GiB.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

const LARGE_PAGE: u64 = 2 << 20;
const PRESENT_WRITABLE_USER: u64 = 7;
const PAGE_SIZE_FLAG: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// What the one page directory pointer table covers.
const LIMIT: u64 = 512 << 30;
/// Directories that can be added, 1 GiB each.
const POOL: usize = 16;

#[repr(C, align(4096))]
struct Tables(UnsafeCell<[[u64; 512]; POOL]>);

// SAFETY: each table is handed out once, and only the boot vCPU maps.
unsafe impl Sync for Tables {}

static TABLES: Tables = Tables(UnsafeCell::new([[0; 512]; POOL]));
static USED: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    static mut pdpt: [u64; 512];
}

/// Maps the 2 MiB around an address one to one. Boot vCPU and CPL0 only.
pub fn map(address: u64) {
    if address < 4 << 30 {
        return; // mapped from the start
    }
    assert!(
        address < LIMIT,
        "{address:#x} is beyond what this guest maps"
    );
    let (gib, page) = ((address >> 30) as usize, (address >> 21) as usize & 511);
    let entry = (&raw mut pdpt).cast::<u64>().wrapping_add(gib);
    // SAFETY: the tables are mapped one to one, and the indexes are below 512. Only entries that
    // were not present change, so there is nothing to flush.
    unsafe {
        if ptr::read_volatile(entry) == 0 {
            let index = USED.fetch_add(1, Ordering::Relaxed);
            assert!(index < POOL, "more than {POOL} GiB mapped");
            let table = TABLES.0.get().cast::<[u64; 512]>().wrapping_add(index);
            ptr::write_volatile(entry, table.addr() as u64 | PRESENT_WRITABLE_USER);
        }
        let directory = (ptr::read_volatile(entry) & ADDRESS) as *mut u64;
        let value = address & !(LARGE_PAGE - 1) | PRESENT_WRITABLE_USER | PAGE_SIZE_FLAG;
        ptr::write_volatile(directory.wrapping_add(page), value);
    }
}
