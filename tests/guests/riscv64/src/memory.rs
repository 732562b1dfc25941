//! Memory that devices use too: it is coherent, so all that drivers need is a large stack.

use core::arch::asm;
use core::sync::atomic::AtomicU64;

const STACK: usize = 256 << 10;

#[repr(C, align(16))]
struct Stack([AtomicU64; STACK / 8]);

static STACK_MEMORY: Stack = Stack([const { AtomicU64::new(0) }; STACK / 8]);

/// Runs a function on a stack that is large enough for drivers.
pub fn with_shared(run: fn()) {
    // SAFETY: nothing else uses this memory; S2 keeps the old stack.
    unsafe {
        asm!(
            "mv s2, sp",
            "mv sp, {stack}",
            "jalr {run}",
            "mv sp, s2",
            stack = in(reg) (&raw const STACK_MEMORY.0).addr() + STACK,
            run = in(reg) run,
            out("s2") _,
            clobber_abi("C"),
        );
    }
}
