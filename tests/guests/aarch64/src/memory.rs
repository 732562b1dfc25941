//! Memory that devices use too: it is coherent, so all that drivers need is a large stack.

use core::arch::asm;
use core::sync::atomic::AtomicU64;

const STACK: usize = 256 << 10;

#[repr(C, align(16))]
struct Stack([AtomicU64; STACK / 8]);

static STACK_MEMORY: Stack = Stack([const { AtomicU64::new(0) }; STACK / 8]);

/// Runs a function on a stack that is large enough for drivers.
pub fn with_shared(run: fn()) {
    // SAFETY: nothing else uses this memory; X20 keeps the old stack.
    unsafe {
        asm!(
            "mov x20, sp",
            "mov sp, {stack}",
            "blr {run}",
            "mov sp, x20",
            stack = in(reg) (&raw const STACK_MEMORY.0).addr() + STACK,
            run = in(reg) run,
            out("x20") _,
            clobber_abi("C"),
        );
    }
}
