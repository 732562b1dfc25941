//! The program that shows how a host runs kernel mode, see [`arch::ProbeProgram`].
//!
//! It uses what every x86_64 processor has: a KVM that interprets kernel mode stops at the first
//! instruction of SSE at the latest.

use arch::kernel::Protocol;
use arch::{ProbeProgram, ProbeStep};

/// How often the loop goes round. Interpreters need about a microsecond for an instruction.
const ITERATIONS: u16 = 2000;

const fn low(value: u16) -> u8 {
    value.to_le_bytes()[0]
}

const fn high(value: u16) -> u8 {
    value.to_le_bytes()[1]
}

#[rustfmt::skip]
const CODE: &[u8] = &[
    0xb3, 5,                                        // mov bl, 5
    // again:
    0xb0, ProbeStep::START, 0xe6, 0x80,             // mov al, START; out 0x80, al
    0xb0, ProbeStep::IDLE, 0xe6, 0x80,              // mov al, IDLE; out 0x80, al
    0xb9, low(ITERATIONS), high(ITERATIONS), 0, 0,  // mov ecx, ITERATIONS
    0xff, 0xc9, 0x75, 0xfc,                         // dec ecx; jnz to the dec
    0xb0, ProbeStep::LOOPED, 0xe6, 0x80,            // mov al, LOOPED; out 0x80, al
    0xfe, 0xcb, 0x75, 0xe7,                         // dec bl; jnz again
    0x0f, 0x20, 0xc0,                               // mov rax, cr0
    0x48, 0x83, 0xe0, 0xf3,                         // and rax, ~(EM | TS)
    0x0f, 0x22, 0xc0,                               // mov cr0, rax
    0x0f, 0x20, 0xe0,                               // mov rax, cr4
    0x48, 0x0d, 0, 2, 0, 0,                         // or rax, OSFXSR
    0x0f, 0x22, 0xe0,                               // mov cr4, rax
    0x0f, 0x57, 0xc0,                               // xorps xmm0, xmm0
    0xb0, ProbeStep::DONE, 0xe6, 0x80,              // mov al, DONE; out 0x80, al
    0xf4, 0xeb, 0xfd,                               // hlt; jmp to the hlt
];

/// The program.
pub const PROGRAM: ProbeProgram = ProbeProgram {
    code: CODE,
    protocol: Protocol::Linux64,
    iterations: ITERATIONS as u32,
    last_part: "floating point, vector or extended-state instructions (stock kernels do: XRSTOR, VEX)",
};
