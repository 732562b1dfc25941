//! What of a machine goes on after it was saved and restored, as data: its vCPUs and KVM's interrupt controllers.
//!
//! KVM names the registers of a vCPU itself (`crate::registers`), and what it lists is saved, so a newer kernel's
//! machines have more of them. Those of the interrupt controllers are listed in [`crate::aia_registers`].

use arch::{Bytes, Difference};
use serde::{Deserialize, Serialize};

use crate::facts::Riscv64;
use crate::registers::{
    SATP_MODE, TIMER_COMPARE, TIMER_STATE, TIMER_TIME, core, extension, is_promise, is_vector, size,
};

/// What a machine was promised of its host. The extensions that its vCPUs have beyond these (of the firmware, and those
/// that guests do not hear of) are the vCPUs': each is loaded with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// Bits of the largest guest physical address.
    pub gpa_bits: u8,
    /// Ticks of the time counter in a second.
    pub timebase: u32,
    /// The vCPUs' extensions, by the names that the guest was told.
    pub extensions: Vec<String>,
    /// The widest translation, as the MODE field of `satp` has it.
    pub satp_mode: u8,
    /// Bytes that an instruction of Zicbom, one of Zicboz and one of Zicbop concerns; 0 without.
    pub cache_blocks: [u32; 3],
    /// Interrupt identities of each vCPU's message controller.
    pub identities: u32,
}

/// Everything of one vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// What KVM_GET_REG_LIST lists, by KVM's names.
    pub registers: Vec<Register>,
    /// KVM_MP_STATE_*: whether it runs or waits to be started.
    pub mp_state: u32,
}

/// A register of a vCPU: KVM's name of it, and its value.
pub type Register = (u64, Bytes);

/// KVM's interrupt controllers. What the guest has written to GENMSI is gone: KVM sends that message again when it is
/// written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChipState {
    /// DOMAINCFG of the APLIC.
    pub domain: u32,
    /// SOURCECFG of each source, from 1 on.
    pub modes: Vec<u32>,
    /// TARGET of each source, from 1 on.
    pub targets: Vec<u32>,
    /// The sources that are pending, 32 in one value.
    pub pending: Vec<u32>,
    /// The sources that are enabled, 32 in one value.
    pub enabled: Vec<u32>,
    /// The message controllers of the vCPUs.
    pub messages: Vec<MessageState>,
}

/// A vCPU's message controller (IMSIC).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MessageState {
    /// Whether it interrupts its vCPU (EIDELIVERY).
    pub delivery: u64,
    /// EITHRESHOLD.
    pub threshold: u64,
    /// The identities that are pending, 64 in one value.
    pub pending: Vec<u64>,
    /// The identities that are enabled, 64 in one value.
    pub enabled: Vec<u64>,
}

/// The clock that a VM shares with its guest: none, a vCPU's registers have the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockState {}

/// The most registers that a vCPU may have: a kernel of today lists some 260.
pub const MOST_REGISTERS: usize = 1024;
/// The extension of vectors, by KVM's number.
const V: u64 = 15;
/// KVM_MP_STATE_RUNNABLE.
const RUNNABLE: u32 = 0;
/// The registers of a firmware call: the extension and the function.
const CALL: [u64; 2] = [core(17), core(16)];
/// The call by which a vCPU stops itself (SBI 2.0, 9.2). It does not return.
const STOP: [u64; 2] = [0x48_534d, 1];
/// The external interrupt's bit in `sip`.
const EXTERNAL: u64 = 1 << 9;

/// What is pending of a vCPU that is loaded: an external interrupt is what the new interrupt controller says, which is
/// loaded already.
#[must_use]
pub const fn pending(saved: u64, own: u64) -> u64 {
    saved & !EXTERNAL | own & EXTERNAL
}

impl VcpuState {
    /// A register of 64 bits. The file of a saved machine may say anything.
    fn value(&self, id: u64) -> Option<u64> {
        let mut registers = self.registers.iter();
        let (_, bytes) = registers.find(|(known, _)| *known == id)?;
        Some(u64::from_le_bytes(bytes.0.as_slice().try_into().ok()?))
    }

    /// The time counter has gone on.
    pub(crate) fn count(&mut self, ticks: u64) {
        for (id, value) in &mut self.registers {
            if *id == TIMER_TIME
                && let Ok(bytes) = <&mut [u8; 8]>::try_from(value.0.as_mut_slice())
            {
                *bytes = u64::from_le_bytes(*bytes).wrapping_add(ticks).to_le_bytes();
            }
        }
    }

    /// Its registers in the order of loading: what it is, then the others. `None` when one has not the size that its
    /// name says, or there are too many; the file of a saved machine may say anything.
    ///
    /// Two are left out: the host's widest translation, of which [`Promise`] has what counts, and whether KVM's own
    /// timer runs, see [`Self::has_timer`].
    #[must_use]
    pub fn in_order(&self) -> Option<[Vec<&Register>; 2]> {
        let registers = &self.registers;
        let is_wrong = |(id, value): &Register| size(*id) != value.0.len();
        if registers.len() > MOST_REGISTERS || registers.iter().any(is_wrong) {
            return None;
        }
        let kept = registers
            .iter()
            .filter(|(id, _)| !matches!(*id, SATP_MODE | TIMER_STATE));
        let (promises, others) = kept.partition(|(id, _)| is_promise(*id));
        Some([promises, others])
    }

    /// Whether a timer is set, be it over by now: where KVM has a timer of its own for the vCPU, that has to be started.
    #[must_use]
    pub fn has_timer(&self) -> bool {
        self.value(TIMER_COMPARE)
            .is_some_and(|compare| compare != u64::MAX)
    }

    /// Whether KVM has listed vectors where the vCPU has them: Linux before 6.8 does not.
    #[must_use]
    pub fn has_its_vectors(&self) -> bool {
        self.value(extension(V)) != Some(1) || self.registers.iter().any(|(id, _)| is_vector(*id))
    }

    /// Whether another vCPU has just started it, and it has not run since: where it starts, KVM keeps to itself until
    /// then. Its registers are still those of a vCPU that never ran, or that has stopped.
    #[must_use]
    pub fn is_starting(&self) -> bool {
        let never_ran = || (0..32).all(|number| self.value(core(number)) == Some(0));
        let has_stopped = || CALL.map(|id| self.value(id)) == STOP.map(Some);
        self.mp_state == RUNNABLE && (never_ran() || has_stopped())
    }
}

impl Promise {
    pub(crate) fn of(host: &Riscv64) -> Self {
        Self {
            gpa_bits: host.gpa_bits,
            timebase: host.timebase,
            extensions: host.extensions.clone(),
            satp_mode: host.satp_mode,
            cache_blocks: host.cache_blocks,
            identities: host.identities,
        }
    }

    /// What was promised and a host has not.
    pub(crate) fn differences(&self, host: &Riscv64) -> Vec<Difference> {
        let mut found = Vec::new();
        if self.timebase != host.timebase {
            let what = "the timer's frequency in Hz";
            found.push(Difference::new(what, self.timebase, host.timebase));
        }
        for (what, saved, here) in [
            (
                "guest physical address bits",
                self.gpa_bits.into(),
                host.gpa_bits.into(),
            ),
            (
                "the widest translation (MODE of satp)",
                self.satp_mode.into(),
                host.satp_mode.into(),
            ),
            (
                "interrupt identities of a vCPU",
                self.identities,
                host.identities,
            ),
        ] {
            let saved: u32 = saved;
            if saved > here {
                found.push(Difference::new(what, saved, here));
            }
        }
        let lacks = |name: &&String| !host.extensions.contains(name);
        for name in self.extensions.iter().filter(lacks) {
            let what = format!("the extension {}", name.escape_debug());
            found.push(Difference::new(what, "it", "not"));
        }
        let blocks = self.cache_blocks.into_iter().zip(host.cache_blocks);
        for (name, (saved, here)) in ["Zicbom", "Zicboz", "Zicbop"].into_iter().zip(blocks) {
            if saved != 0 && saved != here {
                let what = format!("the bytes of a cache block of {name}");
                found.push(Difference::new(what, saved, here));
            }
        }
        found
    }

    /// Makes a host's facts what was promised.
    pub(crate) fn limit(self, host: &mut Riscv64) {
        host.gpa_bits = self.gpa_bits;
        host.timebase = self.timebase;
        host.extensions = self.extensions;
        host.satp_mode = self.satp_mode;
        host.cache_blocks = self.cache_blocks;
        host.identities = self.identities;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use arch::Platform;

    use super::*;
    use crate::registers::{A0, PC, SIP, VECTOR_LENGTH, config, firmware};

    fn vcpu(registers: impl IntoIterator<Item = (u64, u64)>) -> VcpuState {
        let registers = registers.into_iter();
        VcpuState {
            registers: registers
                .map(|(id, value)| (id, Bytes(value.to_le_bytes().to_vec())))
                .collect(),
            mp_state: RUNNABLE,
        }
    }

    #[test]
    fn time_that_passes_moves_the_counter_and_nothing_else() {
        let registers = |time| [(TIMER_TIME, time), (TIMER_COMPARE, 5), (PC, 3)];
        let mut vcpus = [vcpu(registers(u64::MAX))];
        let wrong = (TIMER_TIME, Bytes(vec![1; 4]));
        vcpus[0].registers.push(wrong.clone());
        let host = Riscv64::typical();
        host.pass_time(Duration::from_secs(2), &mut ClockState {}, &mut vcpus);
        let mut moved = vcpu(registers(2 * u64::from(host.timebase) - 1));
        moved.registers.push(wrong);
        assert_eq!(vcpus, [moved]);
    }

    #[test]
    fn what_a_vcpu_is_is_loaded_first_and_wrong_sizes_not_at_all() {
        let ids = [
            config(2),
            SATP_MODE,
            PC,
            TIMER_STATE,
            TIMER_COMPARE,
            extension(V),
            firmware(1),
            VECTOR_LENGTH,
            SIP,
        ];
        let right = vcpu(ids.map(|id| (id, 1)));
        let order = right
            .in_order()
            .unwrap()
            .map(|part| part.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        let promises = vec![config(2), extension(V), firmware(1), VECTOR_LENGTH];
        assert_eq!(order, [promises, vec![PC, TIMER_COMPARE, SIP]]);
        for (id, len) in [
            (PC, 4),
            (PC, 0),
            (PC, 16),
            (VECTOR_LENGTH, 4),
            (u64::MAX, 8),
            (0, 0),
        ] {
            let mut wrong = right.clone();
            wrong.registers.push((id, Bytes(vec![0; len])));
            assert!(wrong.in_order().is_none(), "{id:#x}: {len}");
        }
        let crowd = |count: u64| vcpu((0..count).map(|n| (core(n), 0)));
        assert!(crowd(1024).in_order().is_some());
        assert!(crowd(1025).in_order().is_none());
    }

    #[test]
    fn external_interrupts_are_those_of_the_new_controller() {
        assert_eq!(pending(0x202, 0), 2);
        assert_eq!(pending(0x22, 0x202), 0x222);
        assert_eq!(pending(0, 0x22), 0);
    }

    #[test]
    fn a_timer_is_set_until_it_is_set_to_never() {
        assert!(vcpu([(TIMER_COMPARE, 0)]).has_timer());
        assert!(!vcpu([(TIMER_COMPARE, u64::MAX)]).has_timer());
        assert!(!vcpu([]).has_timer());
    }

    #[test]
    fn vectors_that_are_not_listed_are_missed() {
        assert!(vcpu([]).has_its_vectors());
        assert!(vcpu([(extension(V), 0)]).has_its_vectors());
        assert!(!vcpu([(extension(V), 1)]).has_its_vectors());
        assert!(vcpu([(extension(V), 1), (VECTOR_LENGTH, 16)]).has_its_vectors());
    }

    #[test]
    fn a_vcpu_that_is_started_and_has_not_run_is_known() {
        let fresh = vcpu((0..32).map(|number| (core(number), 0)));
        assert!(fresh.is_starting());
        let waiting = VcpuState {
            mp_state: 5,
            ..fresh.clone()
        };
        assert!(!waiting.is_starting());
        let mut running = fresh;
        running.registers[10] = (A0, Bytes(1_u64.to_le_bytes().to_vec()));
        assert!(!running.is_starting());
        let [what, how] = CALL;
        assert!(vcpu([(what, 0x48_534d), (how, 1), (PC, 9)]).is_starting());
        // It asks for another vCPU's state.
        assert!(!vcpu([(what, 0x48_534d), (how, 2), (PC, 9)]).is_starting());
        assert!(!vcpu([]).is_starting());
    }

    #[test]
    fn a_host_is_different_where_it_lacks_what_was_promised() {
        let host = Riscv64::typical();
        let kept = |change: fn(&mut Promise), mut host: Riscv64| {
            let mut promise = Promise::of(&Riscv64::typical());
            change(&mut promise);
            let found = host.keep(promise.clone());
            assert_eq!(host.promise(), Some(promise), "it is given all the same");
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(kept(|_| (), host.clone()), [""; 0]);
        // The host has more.
        let less = |promise: &mut Promise| {
            promise.extensions.truncate(3);
            promise.cache_blocks = [0; 3];
            (promise.gpa_bits, promise.satp_mode, promise.identities) = (41, 8, 63);
        };
        assert_eq!(kept(less, host.clone()), [""; 0]);
        assert_eq!(
            kept(|promise| promise.timebase = 1, host.clone()),
            ["the timer's frequency in Hz: the saved machine has 1, this host 10000000"]
        );
        let more = |promise: &mut Promise| {
            promise.extensions.push("zba\u{1b}[2J".to_owned());
            promise.cache_blocks[1] = 128;
            (promise.gpa_bits, promise.satp_mode, promise.identities) = (59, 10, 511);
        };
        assert_eq!(
            kept(more, host.clone()),
            [
                "guest physical address bits: the saved machine has 59, this host 50",
                "the widest translation (MODE of satp): the saved machine has 10, this host 9",
                "interrupt identities of a vCPU: the saved machine has 511, this host 255",
                "the extension zba\\u{1b}[2J: the saved machine has it, this host not",
                "the bytes of a cache block of Zicboz: the saved machine has 128, this host 64",
            ]
        );
        let plain = Riscv64 {
            extensions: ["i", "m", "a", "ssaia"].map(str::to_owned).to_vec(),
            cache_blocks: [0; 3],
            ..host
        };
        assert_eq!(kept(|_| (), plain).len(), 17 + 2);
    }
}
