//! Firmware calls: Arm PSCI (DEN 0022) by the SMC calling convention (DEN 0028).

use core::arch::asm;
use core::sync::atomic::{AtomicU8, Ordering};

use crate::fdt::{Fdt, Node};

const CPU_ON: u64 = 0xc400_0003;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const SUCCESS: u64 = 0;
const NOT_SUPPORTED: u64 = u64::MAX;

/// The instruction that calls.
#[derive(Clone, Copy)]
enum Conduit {
    Hvc = 1,
    Smc = 2,
}

static CONDUIT: AtomicU8 = AtomicU8::new(0);

/// Calls are made as the device tree says (arm/psci.yaml).
pub fn open(tree: &Fdt<'_>) {
    let is_psci = |node: &Node<'_>| {
        [b"arm,psci-1.0", b"arm,psci-0.2"]
            .iter()
            .any(|&binding| node.is_compatible(binding))
    };
    let node = tree.nodes().find(is_psci);
    let conduit = match node.and_then(|node| node.text(b"method")) {
        Some(b"hvc") => Conduit::Hvc,
        Some(b"smc") => Conduit::Smc,
        _ => return,
    };
    CONDUIT.store(conduit as u8, Ordering::Relaxed);
}

/// Starts a vCPU and says whether it will come.
///
/// # Safety
/// The code at `entry` breaks no Rust code, given `context` in X0.
pub unsafe fn start_vcpu(affinity: u64, entry: u64, context: u64) -> bool {
    // SAFETY: as the caller promises.
    unsafe { call(CPU_ON, [affinity, entry, context]) == SUCCESS }
}

/// Powers the machine off; returns when there is no PSCI.
pub fn power_off() {
    // SAFETY: the call touches no memory.
    unsafe { call(SYSTEM_OFF, [0; 3]) };
}

/// Resets the machine.
#[allow(dead_code)] // for the micro-guest
pub fn reset() {
    // SAFETY: the call touches no memory.
    unsafe { call(SYSTEM_RESET, [0; 3]) };
}

/// # Safety
/// The function, with these arguments, breaks no Rust code.
unsafe fn call(function: u64, [x1, x2, x3]: [u64; 3]) -> u64 {
    macro_rules! call {
        ($instruction:literal) => {{
            let result;
            // SAFETY: the firmware keeps all registers but those named; the rest is as the caller
            // promises.
            unsafe {
                asm!(
                    $instruction,
                    inlateout("x0") function => result,
                    in("x1") x1,
                    in("x2") x2,
                    in("x3") x3,
                    clobber_abi("C"),
                    options(nostack),
                );
            }
            result
        }};
    }
    match CONDUIT.load(Ordering::Relaxed) {
        1 => call!("hvc #0"),
        2 => call!("smc #0"),
        _ => NOT_SUPPORTED,
    }
}
