//! The image's header, the way from there to `main`, and the code of the other harts.
//!
//! The kernel protocol (Linux Documentation/arch/riscv/boot.rst and boot-image-header.rst) enters at
//! the first byte without translation, with interrupts off, the hart's number in A0 and the address
//! of the device tree in A1. The image lies anywhere that is 2 MiB aligned: the code addresses
//! relative to itself, and the absolute addresses in the data (R_RISCV_RELATIVE, the only kind that a
//! link without shared libraries leaves) are completed first.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .head, "ax"
    .global image_start
    .option push
    .option norvc
    .option norelax
image_start:
    j start
    .word 0
    .dword 0x200000                 // text_offset
    .dword image_size               // with the zeros that the file does not hold
    .dword 0                        // little endian
    .word 2                         // version 0.2
    .word 0
    .dword 0
    .ascii "RISCV\0\0\0"
    .ascii "RSC\x05"
    .word 0

start:
    lla t0, image_start
    lla t1, rela_start
    lla t2, rela_end
1:  bgeu t1, t2, 2f
    ld t3, 0(t1)                    // Elf64_Rela: offset, kind, addend
    ld t4, 16(t1)
    add t3, t3, t0
    add t4, t4, t0
    sd t4, 0(t3)
    addi t1, t1, 24
    j 1b
2:  lla t1, bss_start
    lla t2, bss_end
3:  bgeu t1, t2, 4f
    sd zero, 0(t1)
    addi t1, t1, 8
    j 3b
4:  lla t0, trap
    csrw stvec, t0
    li t0, 1 << 13                  // sstatus.FS: this target's code may use floating point
    csrs sstatus, t0
    lla sp, stack_top
    call {main}

    // Entered by SBI hart_start with the hart's number in A0, the address for its answer in A1.
    .balign 4
secondary:
    li t0, {answered}
    or a0, a0, t0
    sd a0, 0(a1)
    fence
5:  wfi
    j 5b

    .balign 4
trap:
    csrr a0, scause
    csrr a1, sepc
    csrr a2, stval
    lla sp, stack_top
    call {fault}
    .option pop

    .section .data.entry, "aw"
    .balign 8
    .global secondary_address
secondary_address:
    .dword secondary

    .section .bss.entry, "aw", @nobits
    .balign 16
    .skip 16384
stack_top:
    "#,
    main = sym crate::main,
    fault = sym crate::fault,
    answered = const crate::machine::ANSWERED,
);

unsafe extern "C" {
    static secondary_address: u64;
}

/// Where another vCPU starts.
pub fn secondary_entry() -> u64 {
    // SAFETY: the assembly above defines the number; nobody writes it any more.
    unsafe { secondary_address }
}
