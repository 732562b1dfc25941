//! Exceptions end the guest with a report; interrupts call the handler of their vector.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::descriptors::KERNEL_CODE;
use crate::{apic, exit, println};

/// Vectors with a gate. Those from [`FIRST`] on are interrupts.
pub const GATES: usize = 64;
/// The first vector that is no exception.
pub const FIRST: u8 = 32;
const BREAKPOINT: usize = 3;
const STUB_LEN: usize = 16;

global_asm!(
    r#"
    .section .text.interrupts, "ax"
    .balign 16
    .global interrupt_stubs
interrupt_stubs:
    .set vector, 0
    .rept 64
    .balign 16
    .if (0x60227d00 >> vector) & 1 & (vector < 32)
                                    // the processor has pushed an error code
    .else
    push 0
    .endif
    .byte 0x6a, vector              // push vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr

interrupt_common:
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    mov rbx, rsp
    and rsp, -16
    call {handle}
    mov rsp, rbx
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq
    "#,
    handle = sym handle,
);

unsafe extern "C" {
    static interrupt_stubs: u8;
}

/// What the stubs and the processor have pushed.
#[repr(C)]
struct Frame {
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// The interrupt gate of a vector. Breakpoints may come from user mode: [`crate::user`] returns by
/// one.
pub(crate) fn gate(vector: usize) -> [u64; 2] {
    let (target, level) = match vector {
        BREAKPOINT => (crate::user::breakpoint_entry(), 3),
        _ => ((&raw const interrupt_stubs).addr() + vector * STUB_LEN, 0),
    };
    let target = target as u64;
    let low = target & 0xffff
        | u64::from(KERNEL_CODE) << 16
        | (0x8e00 | level << 13) << 32
        | (target >> 16 & 0xffff) << 48;
    [low, target >> 32]
}

static HANDLERS: [AtomicUsize; GATES] = [const { AtomicUsize::new(0) }; GATES];

/// Makes `handler` run, at CPL0 with interrupts off, for each interrupt with this vector.
pub fn on(vector: u8, handler: fn()) {
    assert!(vector >= FIRST && usize::from(vector) < GATES);
    HANDLERS[usize::from(vector)].store(handler as usize, Ordering::Relaxed);
}

extern "C" fn handle(frame: &Frame) {
    let handler = HANDLERS[frame.vector as usize].load(Ordering::Relaxed);
    if handler == 0 {
        if frame.vector == u64::from(apic::SPURIOUS) {
            return;
        }
        let (vector, error) = (frame.vector, frame.error);
        println!("\nunexpected exception or interrupt {vector}, error code {error:#x}");
        println!(
            "rip {:#x}, cs {:#x}, rsp {:#x}, rflags {:#x}, ss {:#x}, cr2 {:#x}",
            frame.rip,
            frame.cs,
            frame.rsp,
            frame.rflags,
            frame.ss,
            cr2()
        );
        println!(
            "registers (r15 to r8, rdi, rsi, rbp, rbx, rdx, rcx, rax): {:x?}",
            frame.registers
        );
        exit(101)
    }
    // SAFETY: only `on` stores here, and it stores a `fn()`.
    let handler: fn() = unsafe { core::mem::transmute(handler) };
    handler();
    apic::end_of_interrupt();
}

fn cr2() -> u64 {
    let value;
    // SAFETY: handlers run at CPL0.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack)) };
    value
}

/// Lets interrupts in. Not from user mode.
pub fn enable() {
    // SAFETY: the IDT is loaded, and handlers touch atomics and devices only.
    unsafe { asm!("sti", options(nostack)) };
}

/// Keeps interrupts out. Not from user mode.
pub fn disable() {
    // SAFETY: nothing relies on interrupts.
    unsafe { asm!("cli", options(nostack)) };
}

/// Sleeps until the next interrupt, and has it handled; interrupts must be off, and are off
/// afterwards, so that no wake-up is lost between a check and this call.
pub fn wait() {
    // SAFETY: as for `enable`.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}
