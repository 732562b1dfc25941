//! From the PVH entry to [`crate::start`]: 32-bit protected mode to long mode.
//!
//! The page tables are data, because building them with code takes milliseconds. Everything is
//! accessible from user mode. [`crate::paging`] adds pages above 4 GiB.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .note.xen, "a", @note
    .balign 4
    .long 4, 4, 18                  // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

    .section .text.entry, "ax"
    .code32
    .global pvh_start
pvh_start:
    cld
    mov esp, offset stack_top
    mov eax, cr4
    or eax, 0x20                    // PAE
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080             // IA32_EFER
    rdmsr
    or eax, 0x100                   // LME
    wrmsr
    mov eax, cr0
    or eax, 0x80010000              // PG, WP
    mov cr0, eax
    lgdt [entry_gdt_pointer]
    push 8
    mov eax, offset long_start
    push eax
    retf

    .code64
long_start:
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov edi, ebx                    // also clears the upper half
    call {start}
    ud2

    .section .data.entry, "aw"
    .balign 8
entry_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        // 64-bit code
entry_gdt_pointer:
    .word entry_gdt_pointer - entry_gdt - 1
    .quad entry_gdt

    .balign 4096
pml4:
    .quad pdpt + 7                  // present, writable, user
    .fill 511, 8, 0
    .global pdpt
pdpt:
    .quad low + 7, low + 0x1007, low + 0x2007, low + 0x3007
    .fill 508, 8, 0
low:
    .set entry, 0x87                // the same, 2 MiB
    .rept 1536
    .quad entry
    .set entry, entry + 0x200000
    .endr
    .set entry, entry + 0x18        // the same, uncached: 3 GiB to 4 GiB
    .rept 512
    .quad entry
    .set entry, entry + 0x200000
    .endr

    .section .bss.entry, "aw", @nobits
    .balign 16
    .skip 65536
stack_top:
    "#,
    start = sym crate::start,
);
