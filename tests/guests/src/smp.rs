//! Starts the other vCPUs: each counts itself, by the APIC id that its CPUID shows, and sleeps.

use core::arch::global_asm;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::machine::ticks;
use crate::{acpi, apic, info};

const COUNTER: u64 = 0x80;
const BY_ID: u64 = 0x100;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;
/// The command's target is not one vCPU, but all except this one.
const ALL_OTHERS: u32 = 0b11 << 18;
/// Ticks of the time stamp counter: some seconds.
const PATIENCE: u64 = 1 << 35;

global_asm!(
    r#"
    .section .text.smp, "ax"
    .code16
    .global smp_trampoline
    .global smp_trampoline_end
smp_trampoline:
    mov eax, 1
    cpuid
    shr ebx, 24
    lock inc byte ptr cs:[bx + {by_id}]
    lock inc dword ptr cs:[{counter}]
1:  cli
    hlt
    jmp 1b
smp_trampoline_end:
    .code64
    "#,
    by_id = const BY_ID,
    counter = const COUNTER,
);

unsafe extern "C" {
    static smp_trampoline: u8;
    static smp_trampoline_end: u8;
}

/// The APIC ids of the vCPUs, from the MADT.
pub fn apic_ids() -> impl Iterator<Item = u32> + Clone {
    acpi::apic_ids(acpi::find(info().rsdp, b"APIC").expect("no MADT"))
}

/// The code that started vCPUs run, in a page below 1 MiB.
struct Trampoline {
    page: u64,
    /// Counts those that have come.
    counter: &'static AtomicU32,
}

impl Trampoline {
    fn place() -> Self {
        let page = info().free_low_page().expect("no free page below 1 MiB");
        let (start, end) = (&raw const smp_trampoline, &raw const smp_trampoline_end);
        // SAFETY: the page is mapped, RAM and nobody else's; the code is shorter than COUNTER.
        let counter = unsafe {
            ptr::write_bytes(page as *mut u8, 0, 0x1000);
            ptr::copy_nonoverlapping(start, page as *mut u8, end.addr() - start.addr());
            AtomicU32::from_ptr((page + COUNTER) as *mut u32)
        };
        Self { page, counter }
    }

    /// The start-up command: delivery mode, and the page's number as vector.
    fn command(&self) -> u32 {
        STARTUP | (self.page >> 12) as u32
    }

    /// Waits until so many have come, or for some seconds. Gives, by the low eight bits of their APIC
    /// ids, how often they have.
    fn wait(&self, expected: u32) -> [u8; 256] {
        let start = ticks();
        while self.counter.load(Ordering::Relaxed) < expected && ticks() - start < PATIENCE {
            core::hint::spin_loop();
        }
        // SAFETY: part of the page.
        unsafe { ptr::read_volatile((self.page + BY_ID) as *const [u8; 256]) }
    }
}

/// Starts all others and waits until they have answered, or for some seconds. Gives, by APIC id,
/// how often a vCPU with that id has started.
pub fn start_others() -> [u8; 256] {
    let own = apic::id();
    let others = apic_ids().filter(|&id| id != own);
    let expected = others.clone().count() as u32;
    let trampoline = Trampoline::place();
    others.clone().for_each(|id| apic::send(id, INIT));
    others.for_each(|id| apic::send(id, trampoline.command()));
    trampoline.wait(expected)
}

/// Starts one vCPU by the interrupt of a line, which `interrupt` makes: the I/O APIC sends it as start-up
/// command. Gives how often a vCPU has started, by the low eight bits of its APIC id.
pub fn start_by_line(id: u32, gsi: u32, interrupt: fn()) -> [u8; 256] {
    let trampoline = Trampoline::place();
    apic::send(0, INIT | ALL_OTHERS);
    // Vector and delivery mode are in the same bits.
    apic::route_to(gsi, id, trampoline.command() & 0x7ff);
    interrupt();
    trampoline.wait(1)
}
