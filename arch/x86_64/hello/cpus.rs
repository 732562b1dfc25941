//! Starts the other vCPUs with INIT and SIPI through the local APIC (Intel SDM volume 3, 9.4.4
//! and 11.6), and counts those that have run.

use core::arch::x86_64::__cpuid;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::entry::{TRAMPOLINE_COUNTER, trampoline_code};
use crate::machine::{DEVICES, memory, msr_read, msr_write, ticks};

const APIC_BASE: u32 = 0x1b;
/// APIC_BASE: x2APIC mode.
const EXTD: u64 = 1 << 10;
const APIC_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// CPUID 1 ECX: the local APIC has an x2APIC mode.
const CPUID_X2APIC: u32 = 1 << 21;
/// The interrupt command register: MSR in x2APIC mode, memory offsets in xAPIC mode.
const X2APIC_ICR: u32 = 0x830;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
/// ICR: delivery is pending (xAPIC).
const PENDING: u32 = 1 << 12;
/// ICR: level assert, delivery mode INIT or start-up.
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;
/// Ticks of the time stamp counter until a start-up IPI is repeated: a fraction of a second.
const REPEAT_AFTER: u64 = 1 << 30;
/// How often it is sent at most.
const ATTEMPTS: u32 = 8;

/// This vCPU's local APIC.
enum Apic {
    X2,
    X1(u64),
}

impl Apic {
    /// The local APIC in its most capable mode.
    fn new() -> Option<Self> {
        // SAFETY: every 64-bit processor has a local APIC with this register; the switch to
        // x2APIC mode is made only where CPUID offers it.
        unsafe {
            let base = msr_read(APIC_BASE);
            if __cpuid(1).ecx & CPUID_X2APIC != 0 {
                msr_write(APIC_BASE, base | EXTD);
                return Some(Self::X2);
            }
            let address = base & APIC_ADDRESS;
            DEVICES.contains(&address).then_some(Self::X1(address))
        }
    }

    /// This vCPU's id.
    fn id(&self) -> u32 {
        match self {
            // SAFETY: x2APIC mode has been switched on.
            Self::X2 => unsafe { msr_read(0x802) as u32 },
            // SAFETY: the APIC's page is mapped, uncached.
            Self::X1(base) => unsafe { ptr::read_volatile((base + 0x20) as *const u32) >> 24 },
        }
    }

    fn send(&self, target: u32, command: u32) {
        match self {
            // SAFETY: x2APIC mode has been switched on; the targets run nothing of ours yet.
            Self::X2 => unsafe {
                msr_write(X2APIC_ICR, u64::from(target) << 32 | u64::from(command))
            },
            // SAFETY: the APIC's page is mapped, uncached.
            Self::X1(base) => unsafe {
                ptr::write_volatile((base + ICR_HIGH) as *mut u32, target << 24);
                ptr::write_volatile((base + ICR_LOW) as *mut u32, command);
                while ptr::read_volatile((base + ICR_LOW) as *const u32) & PENDING != 0 {}
            },
        }
    }
}

/// Starts the vCPUs with these APIC ids except this one, and says how many have run, this one
/// included. `page` is free RAM below 1 MiB.
pub fn start(ids: impl Iterator<Item = u32> + Clone, page: u64) -> u32 {
    let Some(apic) = Apic::new() else { return 1 };
    let own = apic.id();
    let others = ids.filter(|&id| id != own);
    let expected = others.clone().count() as u32;
    let Some(counter) = place_trampoline(page) else {
        return 1;
    };
    others.clone().for_each(|id| apic.send(id, INIT));
    for _ in 0..ATTEMPTS {
        others
            .clone()
            .for_each(|id| apic.send(id, STARTUP | (page >> 12) as u32));
        let start = ticks();
        while counter.load(Ordering::Relaxed) < expected && ticks() - start < REPEAT_AFTER {
            core::hint::spin_loop();
        }
        if counter.load(Ordering::Relaxed) >= expected {
            break;
        }
    }
    1 + counter.load(Ordering::Relaxed)
}

/// Copies the real-mode code to `page` and gives its counter.
fn place_trampoline(page: u64) -> Option<&'static AtomicU32> {
    let code = trampoline_code();
    memory(page, 0x1000)?;
    // SAFETY: the page is mapped, RAM, and nobody else's; the code is shorter than a page and
    // keeps its counter aligned.
    unsafe {
        ptr::copy_nonoverlapping(code.as_ptr(), page as *mut u8, code.len());
        Some(AtomicU32::from_ptr((page + TRAMPOLINE_COUNTER) as *mut u32))
    }
}
