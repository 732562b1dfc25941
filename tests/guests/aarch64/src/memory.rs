//! Memory that devices use too. With the MMU off, this vCPU would not see what the VMM has written
//! to its caches, and the other way round: RAM has to be normal memory, written back.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// The first GiB of RAM; devices are below.
const RAM: usize = 2;
const ENTRIES: usize = 512;
/// Entries of the table, a GiB each (Arm ARM, D8.3): valid and accessed; the number of the memory's
/// kind in MAIR_EL1, whether others share it, whether code runs there.
const DEVICE: u64 = 0x401 | 3 << 53;
const NORMAL: u64 = 0x701 | 1 << 2;
/// Kind 0: a device's, not gathered nor reordered; kind 1: written back.
const MAIR: u64 = 0xff04;
/// 39 bits of address in pages of 4 KiB, walked through the caches; 36 bits come out.
const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 1 << 32;
/// MMU and caches on, in SCTLR_EL1.
const ON: u64 = 1 | 1 << 2 | 1 << 12;
const STACK: usize = 256 << 10;

#[repr(C, align(4096))]
struct Table([AtomicU64; ENTRIES]);

#[repr(C, align(16))]
struct Stack([AtomicU64; STACK / 8]);

static TABLE: Table = Table([const { AtomicU64::new(0) }; ENTRIES]);
static STACK_MEMORY: Stack = Stack([const { AtomicU64::new(0) }; STACK / 8]);

/// Runs what shares memory with devices, on a stack that is large enough for drivers.
pub fn with_shared(run: fn()) {
    for (place, entry) in TABLE.0.iter().enumerate() {
        let base = (place as u64) << 30;
        let kind = if place < RAM { DEVICE } else { NORMAL };
        entry.store(base | kind, Ordering::Relaxed);
    }
    // SAFETY: everything is mapped one to one, as it was without an MMU, and nothing else uses the
    // registers. X20 keeps the old stack.
    unsafe {
        asm!(
            "dsb sy",
            "msr mair_el1, x9",
            "msr tcr_el1, x10",
            "msr ttbr0_el1, x11",
            "isb",
            "tlbi vmalle1",
            "ic iallu",
            "dsb sy",
            "isb",
            "mrs x9, sctlr_el1",
            "orr x9, x9, x12",
            "msr sctlr_el1, x9",
            "isb",
            "mov x20, sp",
            "mov sp, x13",
            "blr x14",
            "mov sp, x20",
            inout("x9") MAIR => _,
            in("x10") TCR,
            in("x11") (&raw const TABLE).addr(),
            in("x12") ON,
            in("x13") (&raw const STACK_MEMORY).addr() + STACK,
            in("x14") run,
            out("x20") _,
            clobber_abi("C"),
        );
    }
}
