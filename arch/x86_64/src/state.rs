//! What of a machine goes on after it was saved and restored, as data: its vCPUs, KVM's interrupt controllers and
//! timer, the clock that it shares with the guest.
//!
//! What this host's KVM has of a machine (api.rst) is here field by field, so that a file says what is in it and a later
//! version can read it. Nothing of it is decided here but whether a host can go on with a machine.

use std::time::Duration;

use arch::{Bytes, Difference, VcpuId, ticks};
use serde::{Deserialize, Serialize};

use crate::cpuid::CpuidEntry;
use crate::facts::address_bits;
use crate::registers::Msr;

/// IA32_TIME_STAMP_COUNTER.
pub(crate) const TSC: u32 = 0x10;

/// The processor that a machine was promised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// What KVM could show of the host's processor when the machine was made. What each vCPU shows follows from it.
    pub cpuid: Vec<CpuidEntry>,
}

/// Everything of one vCPU, but for its CPUID leaves ([`Promise`]).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// The frequency of its time stamp counter, in kHz; 0 where KVM cannot say.
    pub tsc_khz: u32,
    /// The general registers.
    pub registers: Registers,
    /// Segments and control registers.
    pub system: SystemRegisters,
    /// The debug registers.
    pub debug: DebugRegisters,
    /// Floating point and vectors, in the layout of the instruction XSAVE.
    pub xsave: Bytes,
    /// The extended control registers, by their numbers.
    pub xcrs: Vec<(u32, u64)>,
    /// The local APIC's page of registers.
    pub lapic: Bytes,
    /// The model-specific registers that KVM can read.
    pub msrs: Vec<Msr>,
    /// What is on its way to it.
    pub events: Events,
    /// KVM_MP_STATE_*: whether it runs, halts or waits to be started.
    pub mp_state: u32,
}

/// KVM's interrupt controllers and timer beyond the local APICs, where the machine has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChipState {
    /// None on a lean machine.
    pub full: Option<FullChip>,
}

/// Those of a PC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FullChip {
    /// The first PIC and the second.
    pub pics: [PicState; 2],
    /// The I/O APIC.
    pub ioapic: IoApicState,
    /// The interval timer.
    pub pit: PitState,
}

/// The clock of a VM (KVM_GET_CLOCK).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockState {
    /// What a kvmclock of the guest shows, in nanoseconds.
    pub nanoseconds: u64,
}

impl ClockState {
    /// It has gone on for so long.
    pub(crate) fn pass(&mut self, passed: Duration) {
        let passed = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds = self.nanoseconds.saturating_add(passed);
    }
}

/// More ticks than a time stamp counter has in a second.
const FAR: u64 = 1 << 40;

impl VcpuState {
    /// What is written before its own registers. KVM takes a counter that is less than a second from where those of the VM
    /// are for an attempt to give all vCPUs the same one, and gives it theirs (`kvm_synchronize_tsc`). That is right for
    /// all vCPUs but the first one, whose guest would find that time goes back; before Linux 6.7 also when nobody has
    /// written a counter before.
    pub(crate) fn msrs_before_loading(&self, id: VcpuId) -> Vec<Msr> {
        let counter = self.msrs.iter().find(|msr| msr.index == TSC);
        let far = |counter: &Msr| Msr {
            data: counter.data.wrapping_add(FAR),
            ..*counter
        };
        counter.filter(|_| id == 0).map(far).into_iter().collect()
    }

    /// Its time stamp counter has gone on for so long. Where KVM does not know its frequency, it is the host's and has.
    pub(crate) fn pass(&mut self, passed: Duration) {
        let ticks = ticks(passed, u64::from(self.tsc_khz) * 1000);
        let counters = self.msrs.iter_mut().filter(|msr| msr.index == TSC);
        counters.for_each(|counter| counter.data = counter.data.wrapping_add(ticks));
    }
}

/// General registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the processor's, or KVM's (api.rst).
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the processor's, or KVM's (api.rst).
pub struct SegmentState {
    pub base: u64,
    pub limit: u32,
    pub selector: u16,
    pub kind: u8,
    pub present: u8,
    pub dpl: u8,
    pub db: u8,
    pub s: u8,
    pub l: u8,
    pub g: u8,
    pub avl: u8,
    pub unusable: u8,
}

/// A descriptor table register.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the processor's, or KVM's (api.rst).
pub struct TableState {
    pub base: u64,
    pub limit: u16,
}

/// Segments and control registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the processor's, or KVM's (api.rst).
pub struct SystemRegisters {
    pub cs: SegmentState,
    pub ds: SegmentState,
    pub es: SegmentState,
    pub fs: SegmentState,
    pub gs: SegmentState,
    pub ss: SegmentState,
    pub tr: SegmentState,
    pub ldt: SegmentState,
    pub gdt: TableState,
    pub idt: TableState,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    pub interrupt_bitmap: [u64; 4],
}

/// Debug registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the processor's, or KVM's (api.rst).
pub struct DebugRegisters {
    pub db: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

/// What is on its way to a vCPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the processor's, or KVM's (api.rst).
pub struct Events {
    pub exception: ExceptionState,
    pub interrupt: InterruptState,
    pub nmi: NmiState,
    pub sipi_vector: u32,
    pub flags: u32,
    pub smi: SmiState,
    pub triple_fault: u8,
    pub exception_has_payload: u8,
    pub exception_payload: u64,
}

/// An exception on its way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the processor's, or KVM's (api.rst).
pub struct ExceptionState {
    pub injected: u8,
    pub nr: u8,
    pub has_error_code: u8,
    pub pending: u8,
    pub error_code: u32,
}

/// An interrupt on its way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the processor's, or KVM's (api.rst).
pub struct InterruptState {
    pub injected: u8,
    pub nr: u8,
    pub soft: u8,
    pub shadow: u8,
}

/// A non-maskable interrupt on its way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the processor's, or KVM's (api.rst).
pub struct NmiState {
    pub injected: u8,
    pub pending: u8,
    pub masked: u8,
}

/// System management mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the processor's, or KVM's (api.rst).
pub struct SmiState {
    pub smm: u8,
    pub pending: u8,
    pub smm_inside_nmi: u8,
    pub latched_init: u8,
}

/// A PIC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the processor's, or KVM's (api.rst).
pub struct PicState {
    pub last_irr: u8,
    pub irr: u8,
    pub imr: u8,
    pub isr: u8,
    pub priority_add: u8,
    pub irq_base: u8,
    pub read_reg_select: u8,
    pub poll: u8,
    pub special_mask: u8,
    pub init_state: u8,
    pub auto_eoi: u8,
    pub rotate_on_auto_eoi: u8,
    pub special_fully_nested_mode: u8,
    pub init4: u8,
    pub elcr: u8,
    pub elcr_mask: u8,
}

/// An I/O APIC in KVM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the processor's, or KVM's (api.rst).
pub struct IoApicState {
    pub base_address: u64,
    pub ioregsel: u32,
    pub id: u32,
    pub irr: u32,
    pub redirtbl: [u64; 24],
}

/// A channel of the interval timer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the processor's, or KVM's (api.rst).
pub struct PitChannelState {
    pub count: u32,
    pub latched_count: u16,
    pub count_latched: u8,
    pub status_latched: u8,
    pub status: u8,
    pub read_state: u8,
    pub write_state: u8,
    pub write_latch: u8,
    pub rw_mode: u8,
    pub mode: u8,
    pub bcd: u8,
    pub gate: u8,
    pub count_load_time: i64,
}

/// The interval timer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the processor's, or KVM's (api.rst).
pub struct PitState {
    pub channels: [PitChannelState; 3],
    pub flags: u32,
}

/// Leaves whose registers are sets of features, and those registers: what one has and another lacks is a bit.
pub(crate) const FEATURES: [(u32, u32, [bool; 4]); 8] = [
    // EAX, EBX, ECX, EDX.
    (1, 0, [false, false, true, true]),
    (7, 0, [false, true, true, true]),
    (7, 1, [true, true, true, true]),
    (0xd, 0, [true, false, false, true]),
    (0xd, 1, [true, false, false, false]),
    (0x4000_0001, 0, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
    (0x8000_0008, 0, [false, true, false, false]),
];
impl Promise {
    /// What was promised and a host has not, whose KVM can show these leaves.
    pub(crate) fn differences(&self, host: &[CpuidEntry]) -> Vec<Difference> {
        let mut found = Vec::new();
        let leaf = |leaves: &[CpuidEntry], function, index| {
            let mut leaves = leaves.iter();
            let leaf = leaves.find(|leaf| (leaf.function, leaf.index) == (function, index));
            leaf.map_or([0; 4], |leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
        };
        let vendor = |leaves| {
            let [_, ebx, ecx, edx] = leaf(leaves, 0, 0);
            let bytes = [ebx, edx, ecx].map(u32::to_le_bytes).concat();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (saved, here) = (vendor(&self.cpuid), vendor(host));
        if saved != here {
            found.push(Difference::new("the processor's vendor", saved, here));
        }
        let (saved, here) = (address_bits(&self.cpuid), address_bits(host));
        if saved > here {
            found.push(Difference::new("physical address bits", saved, here));
        }
        for (function, index, sets) in FEATURES {
            let registers = leaf(&self.cpuid, function, index)
                .into_iter()
                .zip(leaf(host, function, index));
            for (place, ((saved, here), is_set)) in registers.zip(sets).enumerate() {
                let lacking = saved & !here;
                if is_set && lacking != 0 {
                    let register = ["EAX", "EBX", "ECX", "EDX"].get(place).unwrap_or(&"");
                    found.push(Difference::new(
                        format!("processor features (CPUID {function:#x}.{index} {register})"),
                        format!("the bits {lacking:#010x}"),
                        "not",
                    ));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use arch::Platform;

    use super::*;
    use crate::X86_64;

    #[test]
    fn time_that_passes_moves_the_clock_and_every_counter() {
        let msr = |index, data| Msr { index, data };
        let vcpu = |tsc_khz| VcpuState {
            tsc_khz,
            msrs: vec![msr(TSC, u64::MAX), msr(0x6e0, 7)],
            ..VcpuState::default()
        };
        let mut clock = ClockState { nanoseconds: 5 };
        let mut vcpus = [vcpu(2_500_000), vcpu(2_500_000), vcpu(0)];
        let passed = Duration::from_nanos(2_000_000_002);
        X86_64::typical().pass_time(passed, &mut clock, &mut vcpus);
        assert_eq!(clock.nanoseconds, 2_000_000_007);
        let moved = vec![msr(TSC, 5_000_000_004), msr(0x6e0, 7)];
        assert_eq!([&vcpus[0].msrs, &vcpus[1].msrs], [&moved, &moved]);
        // It is the host's.
        assert_eq!(vcpus[2], vcpu(0));
        // A state may say anything.
        let mut wild = vec![vcpu(u32::MAX)];
        X86_64::typical().pass_time(Duration::MAX, &mut clock, &mut wild);
        assert_eq!(clock.nanoseconds, u64::MAX);
    }

    #[test]
    fn the_first_counter_is_written_far_from_its_value_first() {
        let vcpu = VcpuState {
            msrs: vec![
                Msr {
                    index: 0x174,
                    data: 1,
                },
                Msr {
                    index: TSC,
                    data: u64::MAX,
                },
            ],
            ..VcpuState::default()
        };
        let far = [Msr {
            index: TSC,
            data: FAR - 1,
        }];
        assert_eq!(vcpu.msrs_before_loading(0), far);
        assert_eq!(vcpu.msrs_before_loading(1), []);
        assert_eq!(VcpuState::default().msrs_before_loading(0), []);
    }

    #[test]
    fn a_host_is_different_where_it_lacks_what_was_promised() {
        let host = X86_64::typical();
        let promise = host.promise().into_iter().next();
        let with = |function, change: fn(&mut CpuidEntry)| {
            let mut promise = promise.clone();
            let leaves = promise.iter_mut().flat_map(|promise| &mut promise.cpuid);
            leaves
                .filter(|leaf| leaf.function == function)
                .for_each(change);
            promise
        };
        let kept = |promise: Option<Promise>, mut host: X86_64| {
            let promise = promise.ok_or("none").map(|promise| {
                let found = host.keep(promise.clone());
                assert_eq!(host.promise(), Some(promise), "it is shown all the same");
                found.iter().map(ToString::to_string).collect::<Vec<_>>()
            });
            promise.unwrap_or_default()
        };
        assert!(promise.is_some());
        assert_eq!(kept(promise.clone(), host.clone()), [""; 0]);
        // The host has more.
        let less = with(1, |leaf| leaf.ecx &= !0x2000);
        assert_eq!(kept(less, host.clone()), [""; 0]);
        for (promise, text) in [
            (
                with(0, |leaf| leaf.ebx = u32::from_le_bytes(*b"Auth")),
                "the processor's vendor: the saved machine has AuthineIntel, this host GenuineIntel",
            ),
            (
                with(1, |leaf| leaf.ecx |= 1),
                "processor features (CPUID 0x1.0 ECX): the saved machine has the bits 0x00000001, this host not",
            ),
            (
                with(0x8000_0008, |leaf| leaf.eax += 1),
                "physical address bits: the saved machine has 47, this host 46",
            ),
        ] {
            assert_eq!(kept(promise, host.clone()), [text]);
        }
        // A leaf that is not there has no bits.
        let mut more = promise;
        if let Some(promise) = &mut more {
            promise.cpuid.push(CpuidEntry {
                function: 7,
                ebx: 1 << 5,
                ..CpuidEntry::default()
            });
        }
        assert_eq!(kept(more, host).len(), 1);
    }
}
