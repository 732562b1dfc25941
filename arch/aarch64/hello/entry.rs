//! The image's header, the way from there to `main`, and the code of the other vCPUs.
//!
//! The kernel protocol (Linux Documentation/arch/arm64/booting.rst) enters at the first byte with
//! the MMU off, interrupts masked and the address of the device tree in X0. The image lies 2 MiB
//! aligned, anywhere: the code addresses relative to itself, and the absolute addresses in the
//! data (R_AARCH64_RELATIVE, the only kind that a link without shared libraries leaves) are
//! completed first. The MMU stays off: memory then behaves like a device's, which makes it
//! coherent between vCPUs, and rules out exclusives and unaligned accesses. The target's code has
//! neither.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .head, "ax"
    .global image_start
image_start:
    b start
    .long 0
    .quad 0                         // text_offset
    .quad image_size                // with the zeros that the file does not hold
    .quad 0xa                       // little endian, 4 KiB pages, placed anywhere
    .quad 0, 0, 0
    .ascii "ARM\x64"
    .long 0

start:
    adrp x1, image_start
    adrp x2, rela_start
    add x2, x2, :lo12:rela_start
    adrp x3, rela_end
    add x3, x3, :lo12:rela_end
1:  cmp x2, x3
    b.hs 2f
    ldp x4, x5, [x2], #16           // Elf64_Rela: offset, kind
    ldr x5, [x2], #8                // and addend
    add x5, x5, x1
    str x5, [x1, x4]
    b 1b
2:  adrp x2, bss_start
    add x2, x2, :lo12:bss_start
    adrp x3, bss_end
    add x3, x3, :lo12:bss_end
3:  cmp x2, x3
    b.hs 4f
    stp xzr, xzr, [x2], #16
    b 3b
4:  msr vbar_el1, x1
    dsb sy
    isb
    adrp x2, stack_top
    add x2, x2, :lo12:stack_top
    mov sp, x2
    bl {main}

    // Entered by PSCI CPU_ON with the address for its answer in X0.
secondary:
    mrs x1, mpidr_el1
    str x1, [x0]
    dsb sy
5:  wfi
    b 5b

    // The image's start is the vector table as well. Interrupts are masked, so one vector matters:
    // synchronous exceptions of this level on its own stack.
    .org image_start + 0x200
    mrs x0, esr_el1
    mrs x1, elr_el1
    mrs x2, far_el1
    adrp x3, stack_top
    add x3, x3, :lo12:stack_top
    mov sp, x3
    bl {fault}

    .section .data.entry, "aw"
    .balign 8
    .global secondary_address
secondary_address:
    .quad secondary

    .section .bss.entry, "aw", @nobits
    .balign 16
    .skip 16384
stack_top:
    "#,
    main = sym crate::main,
    fault = sym crate::fault,
);

unsafe extern "C" {
    static secondary_address: u64;
}

/// Where another vCPU starts.
pub fn secondary_entry() -> u64 {
    // SAFETY: the assembly above defines the number; nobody writes it any more.
    unsafe { secondary_address }
}
