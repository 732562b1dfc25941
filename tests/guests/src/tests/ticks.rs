//! A timer that ticks on, and registers that keep their values, also when the guest goes on elsewhere in between.

use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use guest::machine::{msr_write, port_in, port_out, ticks};
use guest::serial::{DATA, READY, STATUS};
use guest::{apic, interrupts, option, println, user};

const VECTOR: u8 = 48;
/// Cycles of the local APIC's timer: about a millisecond.
const CYCLES: u32 = 1_000_000;
/// The same, of the programmable interval timer and of most time stamp counters.
const DIVISOR: u16 = 1193;
const TSC_CYCLES: u64 = 2_000_000;
/// Ticks between two lines.
const ROUND: u32 = 3;

const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// CPUID 1 ECX: the local APIC's timer takes a deadline.
const HAS_DEADLINE: u32 = 1 << 24;
const CR4_OSFXSR: u64 = 1 << 9;

static TICKED: AtomicU32 = AtomicU32::new(0);
/// What the handler has to do for the next tick.
static NEXT: AtomicUsize = AtomicUsize::new(0);

fn tick() {
    TICKED.fetch_add(1, Ordering::Relaxed);
    if let Some((_, next)) = MODES.get(NEXT.load(Ordering::Relaxed)) {
        next();
    }
}

/// How each kind of timer gets its next tick.
const MODES: [(&str, fn()); 5] = [
    ("none", || ()),
    ("periodic", || ()),
    ("one-shot", || apic::start_one_shot(VECTOR, CYCLES)),
    ("deadline", || {
        // SAFETY: the processor has the register, as `start` has asked.
        unsafe { msr_write(IA32_TSC_DEADLINE, ticks() + TSC_CYCLES) };
    }),
    // The end of interrupt, for the first PIC.
    ("pit", || port_out(0x20, 0x20)),
];

fn start(mode: &str) {
    interrupts::on(VECTOR, tick);
    match mode {
        "none" => return,
        "pit" => {
            // By the PICs alone (82C59A data sheet): vectors from VECTOR on, line 0 is let in.
            for (port, value) in [
                (0x20, 0x11),
                (0x21, VECTOR),
                (0x21, 0x04),
                (0x21, 0x01),
                (0x21, 0xfe),
            ] {
                port_out(port, value);
            }
            // Counter 0 in mode 2 (82C54 data sheet).
            let [low, high] = DIVISOR.to_le_bytes();
            for (port, value) in [(0x43, 0x34), (0x40, low), (0x40, high)] {
                port_out(port, value);
            }
            return;
        }
        _ => apic::enable(),
    }
    match mode {
        "periodic" => apic::start_timer(VECTOR, CYCLES),
        "one-shot" => apic::start_one_shot(VECTOR, CYCLES),
        _ => {
            assert_ne!(__cpuid(1).ecx & HAS_DEADLINE, 0, "no TSC deadline");
            apic::expect_deadline(VECTOR);
            tick();
        }
    }
}

/// Lets user mode use SSE.
fn enable_sse() {
    // SAFETY: this guest's own code has no such instructions.
    unsafe {
        asm!("mov {0}, cr4", "or {0}, {1}", "mov cr4, {0}", out(reg) _, const CR4_OSFXSR,
            options(nostack));
    }
}

/// Waits in user mode while `holds` is true, with a value in a register of SSE. The instructions are written as bytes:
/// this target has none.
fn compute(value: u64, holds: impl Fn() -> bool) {
    // movq xmm7, rax
    // SAFETY: nothing else uses the register.
    unsafe { asm!(".byte 0x66, 0x48, 0x0f, 0x6e, 0xf8", in("rax") value, options(nomem, nostack)) };
    while holds() {
        core::hint::spin_loop();
    }
    let found: u64;
    // movq rax, xmm7
    // SAFETY: as above.
    unsafe {
        asm!(".byte 0x66, 0x48, 0x0f, 0x7e, 0xf8", out("rax") found, options(nomem, nostack))
    };
    assert_eq!(found, value, "xmm7");
}

/// Counts rounds, which it prints.
struct Rounds {
    number: u64,
    /// The time stamp counter at the last one's end.
    last: u64,
    is_timed: bool,
}

impl Rounds {
    /// Waits in the given way for some ticks, without a timer for some time.
    fn next(&mut self, wait: impl Fn(u64, &dyn Fn() -> bool)) {
        self.number += 1;
        let (begin, end) = (TICKED.load(Ordering::Relaxed), self.last + TSC_CYCLES);
        let is_timed = self.is_timed;
        wait(self.number, &|| {
            if is_timed {
                TICKED.load(Ordering::Relaxed).wrapping_sub(begin) < ROUND
            } else {
                ticks() < end
            }
        });
        let (now, last) = (ticks(), self.last);
        assert!(now > last, "the counter went from {last} to {now}");
        self.last = now;
        println!("{}", self.number);
    }
}

/// Whether there was input.
fn input() -> bool {
    let is_there = port_in(STATUS) & READY != 0;
    if is_there {
        port_in(DATA);
    }
    is_there
}

/// Prints a number after every few ticks, asleep until there is input, then in user mode until there is more.
///
/// It does not come back from there in between: that is a breakpoint, and a software exception that is on its way is
/// what KVM_GET_VCPU_EVENTS does not tell of. KVM relies on the instruction being executed again, and not every one
/// has the vCPU stand before it.
pub fn run() {
    let mode = option("mode").expect("mode=");
    let number = MODES.iter().position(|(name, _)| *name == mode);
    NEXT.store(number.expect("no such mode"), Ordering::Relaxed);
    enable_sse();
    let mut rounds = Rounds {
        number: 0,
        last: ticks(),
        is_timed: mode != "none",
    };
    start(mode);
    while !input() {
        rounds.next(|_, holds| {
            while holds() {
                if mode != "none" {
                    interrupts::wait();
                }
            }
        });
    }
    println!("user mode");
    interrupts::enable();
    user(|| {
        while !input() {
            rounds.next(|number, holds| compute(number, holds));
        }
    });
}
