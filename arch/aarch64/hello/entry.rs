//! The image's header, the way from there to `main`, and the code of the other vCPUs.
//!
//! The kernel protocol (Linux Documentation/arch/arm64/booting.rst) enters at the first byte with
//! the MMU off, interrupts masked and the address of the device tree in X0. The image lies 2 MiB
//! aligned, anywhere: the code addresses relative to itself, and the absolute addresses in the
//! data (R_AARCH64_RELATIVE, the only kind that a link without shared libraries leaves) are
//! completed first.
//!
//! Compiled code may use floating point registers and unaligned accesses, and it shares memory with the
//! VMM and with other vCPUs, which have caches. So floating point is turned on, and the MMU before
//! anything is stored but its table: everything is mapped one to one, as normal memory from the GiB of
//! the image or the device tree on, as registers of devices below (where Linux's virtual machines have
//! them).

use core::arch::global_asm;

/// Entries of the table, a GiB each (Arm ARM, D8.3): valid and accessed; the number of the memory's
/// kind in MAIR_EL1, whether others share it, whether code runs there.
const DEVICE: u64 = 0x401 | 3 << 53;
const NORMAL: u64 = 0x701 | 1 << 2;
/// Kind 0: a device's, not gathered nor reordered; kind 1: written back.
const MAIR: u64 = 0xff04;
/// 39 bits of address in pages of 4 KiB; 36 bits come out. Walked past the caches, for the table was
/// written so.
const TCR: u64 = 25 | 1 << 23 | 1 << 32;
/// MMU and caches on, in SCTLR_EL1.
const ON: u64 = 1 | 1 << 2 | 1 << 12;
/// Unaligned accesses are faults, in SCTLR_EL1.
const ALIGNMENT_CHECK: u64 = 1 << 1;
/// Floating point traps nowhere, in CPACR_EL1.
const FPEN: u64 = 3 << 20;

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
    msr vbar_el1, x1
    mov x2, {fpen}
    msr cpacr_el1, x2
    lsr x2, x1, #30                 // RAM begins with this GiB
    lsr x3, x0, #30
    cmp x3, x2
    csel x2, x3, x2, lo
    adrp x3, table
    mov x4, xzr
    ldr x5, ={device}
    ldr x6, ={normal}
0:  cmp x4, x2
    csel x7, x5, x6, lo
    orr x7, x7, x4, lsl #30
    str x7, [x3, x4, lsl #3]
    add x4, x4, #1
    cmp x4, #512
    b.lo 0b
    bl translate

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
4:  adrp x2, stack_top
    add x2, x2, :lo12:stack_top
    mov sp, x2
    bl {main}

    // Entered by PSCI CPU_ON with the address for its answer in X0.
secondary:
    bl translate
    mrs x1, mpidr_el1
    str x1, [x0]
    dsb sy
5:  wfi
    b 5b

    // Turns the MMU on; keeps the registers up to X8.
translate:
    dsb sy
    ldr x9, ={mair}
    msr mair_el1, x9
    ldr x9, ={tcr}
    msr tcr_el1, x9
    adrp x9, table
    msr ttbr0_el1, x9
    isb
    tlbi vmalle1
    ic iallu
    dsb sy
    isb
    ldr x10, ={on}
    mrs x9, sctlr_el1
    orr x9, x9, x10
    bic x9, x9, {alignment_check}
    msr sctlr_el1, x9
    isb
    ret
    .ltorg

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

    // Outside of what is cleared with the caches on.
    .section .table, "aw", @nobits
    .balign 4096
table:
    .skip 4096
    "#,
    main = sym crate::main,
    fault = sym crate::fault,
    device = const DEVICE,
    normal = const NORMAL,
    mair = const MAIR,
    tcr = const TCR,
    on = const ON,
    alignment_check = const ALIGNMENT_CHECK,
    fpen = const FPEN,
);

unsafe extern "C" {
    static secondary_address: u64;
}

/// Where another vCPU starts.
pub fn secondary_entry() -> u64 {
    // SAFETY: the assembly above defines the number; nobody writes it any more.
    unsafe { secondary_address }
}
