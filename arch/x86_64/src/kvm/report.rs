//! What a crash report shows of a vCPU: its registers, and the instruction that it was at. Guest memory is read as
//! the guest's page tables say, and may hold anything.

use std::fmt::Write;

use arch::GuestRam;
use kvm_bindings::{kvm_regs, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use crate::paging::{PagingState, translate};

/// Instruction pointer and code base after a reset.
const RESET_VECTOR: (u64, u64) = (0xfff0, 0xffff_0000);
/// Bytes shown at the instruction pointer; the longest instruction has 15.
const INSTRUCTION_BYTES: u64 = 16;

pub(super) fn describe(regs: &kvm_regs, sregs: &kvm_sregs, ram: &GuestRam) -> String {
    let mut text = String::new();
    if (regs.rip, sregs.cs.base) == RESET_VECTOR {
        // What a VMCB holds after a shutdown is undefined (AMD APM volume 2, 15.14.3).
        text.push_str("reset state: on AMD hosts KVM resets a vCPU that shut down\n");
    }
    let general = [
        [
            ("rax", regs.rax),
            ("rbx", regs.rbx),
            ("rcx", regs.rcx),
            ("rdx", regs.rdx),
        ],
        [
            ("rsi", regs.rsi),
            ("rdi", regs.rdi),
            ("rsp", regs.rsp),
            ("rbp", regs.rbp),
        ],
        [
            ("r8 ", regs.r8),
            ("r9 ", regs.r9),
            ("r10", regs.r10),
            ("r11", regs.r11),
        ],
        [
            ("r12", regs.r12),
            ("r13", regs.r13),
            ("r14", regs.r14),
            ("r15", regs.r15),
        ],
        [
            ("rip", regs.rip),
            ("flg", regs.rflags),
            ("cr0", sregs.cr0),
            ("cr2", sregs.cr2),
        ],
        [
            ("cr3", sregs.cr3),
            ("cr4", sregs.cr4),
            ("efr", sregs.efer),
            ("apc", sregs.apic_base),
        ],
    ];
    // Writing to a String cannot fail.
    for row in general {
        for (name, value) in row {
            let _ = write!(text, "{name} {value:016x}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    for (name, segment) in [
        ("cs", sregs.cs),
        ("ss", sregs.ss),
        ("ds", sregs.ds),
        ("tr", sregs.tr),
    ] {
        let _ = writeln!(
            text,
            "{name} {:04x} base {:016x} limit {:08x} type {:x} dpl {} db {} l {}",
            segment.selector,
            segment.base,
            segment.limit,
            segment.type_,
            segment.dpl,
            segment.db,
            segment.l,
        );
    }
    for (name, table) in [("gdt", sregs.gdt), ("idt", sregs.idt)] {
        let _ = writeln!(
            text,
            "{name} base {:016x} limit {:04x}",
            table.base, table.limit
        );
    }
    text.push_str("code");
    let code = instruction_bytes(regs, sregs, ram);
    if code.is_empty() {
        text.push_str(" unreadable");
    }
    for byte in code {
        let _ = write!(text, " {byte:02x}");
    }
    text
}

/// The bytes at the instruction pointer, up to the first one that is not mapped to RAM.
fn instruction_bytes(regs: &kvm_regs, sregs: &kvm_sregs, ram: &GuestRam) -> Vec<u8> {
    let state = PagingState {
        cr0: sregs.cr0,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
    };
    let start = if sregs.cs.l == 0 {
        regs.rip.wrapping_add(sregs.cs.base)
    } else {
        regs.rip
    };
    (0..INSTRUCTION_BYTES)
        .map_while(|i| {
            let address = translate(ram, state, start.wrapping_add(i))?;
            ram.read_obj(GuestAddress(address)).ok()
        })
        .collect()
}
