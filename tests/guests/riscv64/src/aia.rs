//! The interrupts of one hart (RISC-V Advanced Interrupt Architecture 1.0): wired ones become messages
//! in the APLIC, and all messages arrive in the hart's IMSIC. And the way from an interrupt to its
//! handler.

use core::arch::{asm, global_asm};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::access::{load_word, store_word};
use crate::machine::{ticks, ticks_per_second};
use crate::run::device;
use crate::{fault, sbi};

/// `scause` of an interrupt (Privileged Architecture, table 24).
const INTERRUPT: u64 = 1 << 63;
const TIMER: u64 = 5;
const EXTERNAL: u64 = 9;
/// Identities of messages: those from a wired interrupt, those from a device.
const LINE: u64 = 1;
const MESSAGE: u64 = 2;

/// Registers behind `siselect` (3.8): delivery, threshold, enables of identities 0 to 63.
const EIDELIVERY: u64 = 0x70;
const EITHRESHOLD: u64 = 0x72;
const EIE0: u64 = 0xc0;

/// Registers of the APLIC (4.5): of the domain, of each source, by number, from 1 on.
const DOMAINCFG: u64 = 0;
const SOURCECFG: u64 = 0;
const SETIENUM: u64 = 0x1edc;
const TARGET: u64 = 0x3000;
/// Interrupts on; delivered as messages.
const IE: u32 = 1 << 8;
const DM: u32 = 1 << 2;
/// A source is a rising edge.
const EDGE: u32 = 4;

/// SBI: the timer's extension and its only function (chapter 6).
const TIME: u64 = 0x5449_4d45;
const SET_TIMER: u64 = 0;

/// Of the timer, of the two identities.
static HANDLERS: [AtomicPtr<()>; 3] = [const { AtomicPtr::new(ptr::null_mut()) }; 3];

global_asm!(
    r#"
    .balign 4
interrupt_vector:
    addi sp, sp, -128
    sd ra, 0(sp)
    sd t0, 8(sp)
    sd t1, 16(sp)
    sd t2, 24(sp)
    sd t3, 32(sp)
    sd t4, 40(sp)
    sd t5, 48(sp)
    sd t6, 56(sp)
    sd a0, 64(sp)
    sd a1, 72(sp)
    sd a2, 80(sp)
    sd a3, 88(sp)
    sd a4, 96(sp)
    sd a5, 104(sp)
    sd a6, 112(sp)
    sd a7, 120(sp)
    csrr a0, scause
    csrr a1, sepc
    csrr a2, stval
    call {handle}
    ld ra, 0(sp)
    ld t0, 8(sp)
    ld t1, 16(sp)
    ld t2, 24(sp)
    ld t3, 32(sp)
    ld t4, 40(sp)
    ld t5, 48(sp)
    ld t6, 56(sp)
    ld a0, 64(sp)
    ld a1, 72(sp)
    ld a2, 80(sp)
    ld a3, 88(sp)
    ld a4, 96(sp)
    ld a5, 104(sp)
    ld a6, 112(sp)
    ld a7, 120(sp)
    addi sp, sp, 128
    sret

    // On one page: QEMU's emulation was seen to go on elsewhere when one ended behind WFI.
    .balign 16
sleep:
    wfi
    csrsi sstatus, 2
    csrci sstatus, 2
    ret
    "#,
    handle = sym handle,
);

unsafe extern "C" {
    static interrupt_vector: u8;
    fn sleep();
}

extern "C" fn handle(cause: u64, instruction: u64, value: u64) {
    if cause == INTERRUPT | TIMER {
        call(0);
    } else if cause == INTERRUPT | EXTERNAL {
        loop {
            let top: u64;
            // SAFETY: claims the message that arrived (3.10).
            unsafe { asm!("csrrw {}, 0x15c, zero", out(reg) top, options(nostack)) };
            match top >> 16 {
                0 => break,
                identity => call(identity as usize),
            }
        }
    } else {
        fault(cause, instruction, value);
    }
}

fn call(number: usize) {
    let handler = HANDLERS
        .get(number)
        .map(|handler| handler.load(Ordering::Relaxed));
    match handler {
        Some(handler) if !handler.is_null() => {
            // SAFETY: only `on` stores here, and it stores functions of this type.
            let handler: fn() = unsafe { core::mem::transmute(handler) };
            handler();
        }
        _ => panic!("interrupt {number} was never asked for"),
    }
}

fn on(number: usize, handler: fn(), cause: u64) {
    HANDLERS[number].store(handler as *mut (), Ordering::Relaxed);
    // SAFETY: the code above; interrupts stay off but for their cause.
    unsafe {
        asm!(
            "csrw stvec, {}",
            "csrs sie, {}",
            in(reg) (&raw const interrupt_vector).addr(),
            in(reg) 1u64 << cause,
            options(nostack),
        );
    }
}

/// Lets the messages of an identity in.
fn accept(identity: u64, handler: fn()) {
    for (register, value) in [(EIDELIVERY, 1), (EITHRESHOLD, 0), (EIE0, 1 << identity)] {
        // SAFETY: the hart's own message controller: `siselect`, then bits of `sireg`.
        unsafe {
            asm!(
                "csrw 0x150, {}",
                "csrs 0x151, {}",
                in(reg) register,
                in(reg) value,
                options(nostack),
            );
        }
    }
    on(identity as usize, handler, EXTERNAL);
}

/// Calls `handler` when a line rises.
pub fn line(source: u32, handler: fn()) {
    accept(LINE, handler);
    let aplic = device("riscv,aplic");
    let register = 4 * u64::from(source);
    store_word(aplic + SOURCECFG + register, EDGE);
    // To the first hart's own level.
    store_word(aplic + TARGET + register, LINE as u32);
    store_word(aplic + SETIENUM, source);
    store_word(aplic + DOMAINCFG, IE | DM);
    assert_eq!(load_word(aplic + DOMAINCFG) & (IE | DM), IE | DM);
}

/// Calls `handler` for a message. Says where it has to be written, and what.
pub fn message(handler: fn()) -> Option<(u32, u32)> {
    accept(MESSAGE, handler);
    let address = device("riscv,imsics");
    Some((address as u32, MESSAGE as u32))
}

/// Calls `handler` when the timer ends.
pub fn timer(handler: fn()) {
    on(0, handler, TIMER);
}

/// Lets the timer end in five milliseconds, or never: under emulation a call of the firmware takes a
/// good part of one.
pub fn set_timer(on: bool) {
    let end = match on {
        true => ticks() + ticks_per_second() / 200,
        false => u64::MAX,
    };
    // SAFETY: the call touches no memory.
    unsafe { sbi::call(TIME, SET_TIMER, [end, 0, 0]) };
}

/// Sleeps until an interrupt, and handles it.
pub fn wait() {
    // SAFETY: the code above. WFI wakes for an interrupt that is held off; it is taken between the two
    // instructions that follow.
    unsafe { sleep() };
}

/// Takes interrupts while `compute` runs.
pub fn interruptible(compute: impl FnOnce()) {
    // SAFETY: the handlers share only atomics with the code they interrupt.
    unsafe { asm!("csrsi sstatus, 2", options(nostack)) };
    compute();
    // SAFETY: as it was before.
    unsafe { asm!("csrci sstatus, 2", options(nostack)) };
}
