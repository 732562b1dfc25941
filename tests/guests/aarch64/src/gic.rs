//! The GICv3, as far as one vCPU needs it, and the way from an interrupt to its handler
//! (GIC architecture specification, IHI 0069).

use core::arch::{asm, global_asm};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::fault;
use crate::machine::{register, set_register, ticks_per_second};
use crate::run::tree;

/// INTIDs that may have a handler.
const INTIDS: usize = 64;
/// The first shared interrupt.
const FIRST_SPI: u32 = 32;

/// Distributor: control, then groups, enables, configuration; routing.
const CTLR: u64 = 0x0;
const IGROUPR: u64 = 0x80;
const ISENABLER: u64 = 0x100;
const ICFGR: u64 = 0xc00;
const IROUTER: u64 = 0x6000;
/// Redistributor: the frame of private interrupts, and the register that wakes it.
const SGI_FRAME: u64 = 0x1_0000;
const WAKER: u64 = 0x14;
const PROCESSOR_SLEEP: u32 = 1 << 1;
const CHILDREN_ASLEEP: u32 = 1 << 2;

static HANDLERS: [AtomicPtr<()>; INTIDS] = [const { AtomicPtr::new(ptr::null_mut()) }; INTIDS];

global_asm!(
    r#"
    .section .text.vectors, "ax"
    .balign 2048
    .global vectors
vectors:
    .org vectors + 0x200
    mrs x0, esr_el1
    mrs x1, elr_el1
    mrs x2, far_el1
    bl {fault}
    .org vectors + 0x280
    sub sp, sp, #160
    stp x0, x1, [sp]
    stp x2, x3, [sp, #16]
    stp x4, x5, [sp, #32]
    stp x6, x7, [sp, #48]
    stp x8, x9, [sp, #64]
    stp x10, x11, [sp, #80]
    stp x12, x13, [sp, #96]
    stp x14, x15, [sp, #112]
    stp x16, x17, [sp, #128]
    stp x18, x30, [sp, #144]
    bl {handle}
    ldp x0, x1, [sp]
    ldp x2, x3, [sp, #16]
    ldp x4, x5, [sp, #32]
    ldp x6, x7, [sp, #48]
    ldp x8, x9, [sp, #64]
    ldp x10, x11, [sp, #80]
    ldp x12, x13, [sp, #96]
    ldp x14, x15, [sp, #112]
    ldp x16, x17, [sp, #128]
    ldp x18, x30, [sp, #144]
    add sp, sp, #160
    eret
    .org vectors + 0x800
    "#,
    fault = sym fault,
    handle = sym handle,
);

unsafe extern "C" {
    static vectors: u8;
}

extern "C" fn handle() {
    let intid: u64;
    // SAFETY: acknowledges the interrupt.
    unsafe { asm!("mrs {}, S3_0_C12_C12_0", out(reg) intid, options(nostack)) };
    let handler = HANDLERS.get(intid as usize);
    let handler = handler.map(|handler| handler.load(Ordering::Relaxed));
    match handler {
        Some(handler) if !handler.is_null() => {
            // SAFETY: only `on` stores here, and it stores functions of this type.
            let handler: fn() = unsafe { core::mem::transmute(handler) };
            handler();
        }
        _ => panic!("interrupt {intid} was never asked for"),
    }
    // SAFETY: ends the interrupt that was acknowledged.
    unsafe { asm!("msr S3_0_C12_C12_1, {}", in(reg) intid, options(nostack)) };
}

/// The places of distributor and redistributors, from the device tree.
fn places() -> (u64, u64) {
    let node = tree()
        .nodes()
        .find(|node| node.is_compatible(b"arm,gic-v3"));
    let mut places = node.expect("no GICv3").reg().map(|range| range.base);
    (
        places.next().expect("no distributor"),
        places.next().expect("no redistributors"),
    )
}

fn set(address: u64, value: u32) {
    // SAFETY: a register of the interrupt controller.
    unsafe { set_register(address, value) };
}

/// Calls `handler` for an interrupt of this vCPU, the first one; a shared one is an edge.
fn on(intid: u32, handler: fn()) {
    let (distributor, redistributor) = places();
    HANDLERS[intid as usize].store(handler as *mut (), Ordering::Relaxed);
    // SAFETY: the table above; then the processor's interface to the controller is switched on:
    // system registers, all priorities, group 1.
    unsafe {
        asm!(
            "msr vbar_el1, {vectors}",
            "msr S3_0_C12_C12_5, {on}",
            "isb",
            "msr S3_0_C4_C6_0, {lowest}",
            "msr S3_0_C12_C12_7, {on}",
            "isb",
            vectors = in(reg) (&raw const vectors).addr(),
            on = in(reg) 1u64,
            lowest = in(reg) 0xffu64,
            options(nostack),
        );
    }
    set(redistributor + WAKER, 0);
    // SAFETY: the same register.
    while unsafe { register(redistributor + WAKER) } & (PROCESSOR_SLEEP | CHILDREN_ASLEEP) != 0 {}
    // Affinity routing, group 1.
    set(distributor + CTLR, 0x12);
    let (frame, word) = if intid < FIRST_SPI {
        (redistributor + SGI_FRAME, 0)
    } else {
        set(distributor + IROUTER + 8 * u64::from(intid), 0);
        // Two bits each; the upper one means: an edge.
        let shift = 2 * (intid % 16) + 1;
        set(distributor + ICFGR + 4 * u64::from(intid / 16), 1 << shift);
        (distributor, u64::from(intid / 32))
    };
    set(frame + IGROUPR + 4 * word, 1 << (intid % 32));
    set(frame + ISENABLER + 4 * word, 1 << (intid % 32));
}

/// Sleeps until an interrupt, and handles it.
pub fn wait() {
    // SAFETY: WFI wakes for a masked interrupt; it is taken between the two.
    unsafe {
        asm!(
            "wfi",
            "msr daifclr, #2",
            "isb",
            "msr daifset, #2",
            options(nostack)
        )
    };
}

/// Calls `handler` when a line rises.
pub fn line(gsi: u32, handler: fn()) {
    on(FIRST_SPI + gsi, handler);
}

/// Would call `handler` for a message: those need the ITS, which this guest has no driver for.
pub fn message(_handler: fn()) -> Option<(u32, u32)> {
    None
}

/// Takes interrupts while `compute` runs.
pub fn interruptible(compute: impl FnOnce()) {
    // SAFETY: the handlers share only atomics with the code they interrupt.
    unsafe { asm!("msr daifclr, #2", options(nostack)) };
    compute();
    // SAFETY: as it was before.
    unsafe { asm!("msr daifset, #2", options(nostack)) };
}

/// The virtual timer's private interrupt.
const TIMER_INTID: u32 = 27;

/// Calls `handler` when the timer ends.
pub fn timer(handler: fn()) {
    on(TIMER_INTID, handler);
}

/// Lets the timer end in a millisecond, or never.
pub fn set_timer(on: bool) {
    // SAFETY: the timer belongs to the caller's test.
    unsafe {
        asm!(
            "msr cntv_tval_el0, {}",
            "msr cntv_ctl_el0, {}",
            "isb",
            in(reg) ticks_per_second() / 1000,
            in(reg) u64::from(on),
            options(nostack),
        );
    }
}
