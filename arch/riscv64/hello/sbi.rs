//! Firmware calls (RISC-V Supervisor Binary Interface 2.0).

use core::arch::asm;

/// Extensions: hart state management (chapter 9), system reset (chapter 10).
const HSM: u64 = 0x48_534d;
const SRST: u64 = 0x5352_5354;
const HART_START: u64 = 0;
const SYSTEM_RESET: u64 = 0;
/// Kinds of a reset.
const SHUTDOWN: u64 = 0;
const COLD_REBOOT: u64 = 1;
const SUCCESS: u64 = 0;

/// Starts a vCPU and says whether it will come.
///
/// # Safety
/// The code at `entry` breaks no Rust code, given `context` in A1.
pub unsafe fn start_vcpu(hart: u64, entry: u64, context: u64) -> bool {
    // SAFETY: as the caller promises.
    unsafe { call(HSM, HART_START, [hart, entry, context]) == SUCCESS }
}

/// Powers the machine off; returns when the firmware cannot.
pub fn power_off() {
    // SAFETY: the call touches no memory.
    unsafe { call(SRST, SYSTEM_RESET, [SHUTDOWN, 0, 0]) };
}

/// Resets the machine.
#[allow(dead_code)] // for the micro-guest
pub fn reset() {
    // SAFETY: the call touches no memory.
    unsafe { call(SRST, SYSTEM_RESET, [COLD_REBOOT, 0, 0]) };
}

/// Gives the error (chapter 3).
///
/// # Safety
/// The function, with these arguments, breaks no Rust code.
pub unsafe fn call(extension: u64, function: u64, [a0, a1, a2]: [u64; 3]) -> u64 {
    let error;
    // SAFETY: the firmware keeps all registers but A0 and A1; the rest is as the caller promises.
    unsafe {
        asm!(
            "ecall",
            inlateout("a0") a0 => error,
            inlateout("a1") a1 => _,
            in("a2") a2,
            in("a6") function,
            in("a7") extension,
            options(nostack),
        );
    }
    error
}
