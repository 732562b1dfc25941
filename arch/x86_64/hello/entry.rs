//! From the PVH entry to `main`, and the real-mode code of the other vCPUs.
//!
//! PVH (Xen docs/misc/pvh.pandoc) enters in 32-bit protected mode with flat segments, paging off
//! and the address of `hvm_start_info` in EBX. The page tables are data: they map the first GiB
//! and the GiB below 4 GiB, where the local APIC is, one to one.

use core::arch::global_asm;

/// Where the real-mode code has its 32-bit counter.
pub const TRAMPOLINE_COUNTER: u64 = 16;

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
    or eax, 0x620                   // PAE; OSFXSR, OSXMMEXCPT: this target's code may use SSE
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080             // IA32_EFER
    rdmsr
    or eax, 0x100                   // LME
    wrmsr
    mov eax, cr0
    and eax, 0xfffffffb             // not EM, MP: floating point is the processor's
    or eax, 0x80000002              // PG
    mov cr0, eax
    lgdt [gdt_pointer]
    push 8
    mov eax, offset long_start
    push eax
    retf

    .code64
long_start:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov edi, ebx                    // also clears the upper half
    call {main}
    ud2

    // Runs in real mode wherever it is copied to, with CS at its start.
    .code16
    .global trampoline
    .global trampoline_end
trampoline:
    lock inc dword ptr cs:[{counter}]
1:  cli
    hlt
    jmp 1b
    .org trampoline + {counter}
    .long 0
trampoline_end:
    .code64

    .section .data.entry, "aw"
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        // 64-bit code
    .quad 0x00cf93000000ffff        // data
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .quad gdt

    .balign 4096
pml4:
    .quad pdpt + 3                  // present, writable
    .fill 511, 8, 0
pdpt:
    .quad low + 3, 0, 0, devices + 3
    .fill 508, 8, 0
low:
    .set entry, 0x83                // present, writable, 2 MiB
    .rept 512
    .quad entry
    .set entry, entry + 0x200000
    .endr
devices:
    .set entry, 0xc000009b          // the same, uncached
    .rept 512
    .quad entry
    .set entry, entry + 0x200000
    .endr

    .section .bss.entry, "aw", @nobits
    .balign 16
    .skip 16384
stack_top:
    "#,
    main = sym crate::main,
    counter = const TRAMPOLINE_COUNTER,
);

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
}

/// The real-mode code.
pub fn trampoline_code() -> &'static [u8] {
    let (start, end) = (&raw const trampoline, &raw const trampoline_end);
    // SAFETY: the symbols enclose the bytes that the assembly above defines.
    unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) }
}
