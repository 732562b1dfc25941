//! What of a machine goes on after it was saved and restored, as data: its vCPUs and KVM's interrupt controller.
//!
//! KVM names the registers of a vCPU itself (`crate::registers`), and what it lists is saved, so a newer kernel's
//! machines have more of them. Those of the interrupt controller are listed here ([`crate::gic_registers`]).

use arch::{Bytes, Difference};
use serde::{Deserialize, Serialize};

use crate::facts::Aarch64;
use crate::registers::{COUNTERS, VECTOR_LENGTHS, size};

/// What a machine was promised of its host. Its ID registers are the vCPUs': each is loaded where it differs, and what
/// KVM does not take then is what the host lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// The frequency of the counter that all timers share (CNTFRQ_EL0), in Hz.
    pub counter_hz: u64,
    /// Bits of the largest guest physical address.
    pub ipa_bits: u8,
    /// The guest may count events.
    pub pmu: bool,
    /// The guest may use scalable vectors.
    pub sve: bool,
    /// The guest may authenticate pointers.
    pub pointer_authentication: bool,
}

/// Everything of one vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// What KVM_GET_REG_LIST lists, by KVM's names.
    pub registers: Vec<(u64, Bytes)>,
    /// What is on its way to it.
    pub events: Events,
    /// KVM_MP_STATE_*: whether it runs or waits to be started.
    pub mp_state: u32,
}

/// What is on its way to a vCPU (KVM_GET_VCPU_EVENTS).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are KVM's (api.rst).
pub struct Events {
    pub serror_pending: u8,
    pub serror_has_esr: u8,
    pub ext_dabt_pending: u8,
    pub serror_esr: u64,
}

/// Registers that lie at equal distances: the first one's place, and their values.
pub type Registers = (u32, Vec<u64>);

/// KVM's GICv3 and its ITS. Tables in guest memory have the rest: which messages are which interrupts, and which of
/// those are pending.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChipState {
    /// The distributor's registers, by their offsets.
    pub distributor: Vec<Registers>,
    /// The levels of the lines, by the first INTID of 32.
    pub lines: Vec<Registers>,
    /// What each vCPU has of it.
    pub vcpus: Vec<InterfaceState>,
    /// The ITS's registers, by their offsets.
    pub its: Vec<Registers>,
}

/// What a vCPU has of the interrupt controller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterfaceState {
    /// Its redistributor's registers, by their offsets.
    pub redistributor: Vec<Registers>,
    /// The levels of its own lines.
    pub lines: Vec<Registers>,
    /// Its system registers (ICC_*_EL1), by their encodings.
    pub system: Vec<Registers>,
}

/// The clock that a VM shares with its guest: none, a vCPU's registers have the counter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockState {}

impl VcpuState {
    /// The vector lengths, where it has vectors.
    pub(crate) fn vector_lengths(&self) -> Option<&Bytes> {
        let mut registers = self.registers.iter();
        let found = registers.find(|(id, _)| *id == VECTOR_LENGTHS);
        found.map(|(_, value)| value)
    }

    /// Its registers in the order of loading: timers are compared with the counters. `None` when one has not the size
    /// that its name says; the file of a saved machine may say anything.
    #[must_use]
    pub fn in_order(&self) -> Option<impl Iterator<Item = &(u64, Bytes)>> {
        let registers = &self.registers;
        if registers
            .iter()
            .any(|(id, value)| size(*id) != Some(value.0.len()))
        {
            return None;
        }
        let is_counter = |register: &&(u64, Bytes)| COUNTERS.contains(&register.0);
        let others = registers.iter().filter(move |other| !is_counter(other));
        Some(registers.iter().filter(is_counter).chain(others))
    }
}

impl VcpuState {
    /// Its counters, of which all clocks of a guest are made, have gone on.
    pub(crate) fn count(&mut self, ticks: u64) {
        for (id, value) in &mut self.registers {
            if COUNTERS.contains(id)
                && let Ok(bytes) = <&mut [u8; 8]>::try_from(value.0.as_mut_slice())
            {
                *bytes = u64::from_le_bytes(*bytes).wrapping_add(ticks).to_le_bytes();
            }
        }
    }
}

impl Promise {
    pub(crate) fn of(host: &Aarch64) -> Self {
        Self {
            counter_hz: host.counter_hz,
            ipa_bits: host.ipa_bits,
            pmu: host.pmu,
            sve: host.sve,
            pointer_authentication: host.pointer_authentication,
        }
    }

    /// What was promised and a host has not.
    pub(crate) fn differences(&self, host: &Aarch64) -> Vec<Difference> {
        let here = Self::of(host);
        let mut found = Vec::new();
        if self.counter_hz != here.counter_hz {
            let what = "the counter's frequency in Hz";
            found.push(Difference::new(what, self.counter_hz, here.counter_hz));
        }
        if self.ipa_bits > here.ipa_bits {
            let what = "guest physical address bits";
            found.push(Difference::new(what, self.ipa_bits, here.ipa_bits));
        }
        for (what, saved, here) in [
            ("performance monitors (PMUv3)", self.pmu, here.pmu),
            ("scalable vectors (SVE)", self.sve, here.sve),
            (
                "keys of pointer authentication",
                self.pointer_authentication,
                here.pointer_authentication,
            ),
        ] {
            if saved && !here {
                found.push(Difference::new(what, "them", "not"));
            }
        }
        found
    }

    /// Makes a host's facts what was promised.
    pub(crate) fn limit(&self, host: &mut Aarch64) {
        host.counter_hz = self.counter_hz;
        host.ipa_bits = self.ipa_bits;
        host.pmu = self.pmu;
        host.sve = self.sve;
        host.pointer_authentication = self.pointer_authentication;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use arch::Platform;

    use super::*;
    use crate::registers::{PC, x};

    #[test]
    fn counters_are_loaded_first_and_wrong_sizes_not_at_all() {
        let state = |registers| VcpuState {
            registers,
            events: Events::default(),
            mp_state: 0,
        };
        let eight = |id| (id, Bytes(vec![0; 8]));
        let [counter, _] = COUNTERS;
        let right = state(vec![eight(PC), eight(counter), eight(x(0))]);
        let ids = right.in_order().map(|all| all.map(|(id, _)| *id).collect());
        assert_eq!(ids, Some(vec![counter, PC, x(0)]));
        for (id, len) in [(PC, 4), (PC, 0), (PC, 16), (u64::MAX, 1 << 15)] {
            let wrong = state(vec![(id, Bytes(vec![0; len]))]);
            assert!(wrong.in_order().is_none(), "{id:#x}: {len}");
        }
    }

    #[test]
    fn time_that_passes_moves_the_counters_and_nothing_else() {
        let [virtual_one, physical] = COUNTERS;
        let number = |value: u64| Bytes(value.to_le_bytes().to_vec());
        let with = |one, other| VcpuState {
            registers: vec![
                (virtual_one, number(one)),
                (PC, number(3)),
                (physical, number(other)),
                // A state may say anything.
                (virtual_one, Bytes(vec![1; 4])),
            ],
            events: Events::default(),
            mp_state: 0,
        };
        let mut vcpus = [with(1, u64::MAX)];
        // Its counter has 1 GHz.
        let host = Aarch64::typical();
        host.pass_time(Duration::from_secs(2), &mut ClockState {}, &mut vcpus);
        assert_eq!(vcpus, [with(2_000_000_001, 1_999_999_999)]);
        host.pass_time(Duration::MAX, &mut ClockState {}, &mut vcpus);
    }

    #[test]
    fn a_host_is_different_where_it_lacks_what_was_promised() {
        let host = Aarch64::typical();
        let kept = |change: fn(&mut Promise), mut host: Aarch64| {
            let mut promise = Promise::of(&Aarch64::typical());
            change(&mut promise);
            let found = host.keep(promise);
            assert_eq!(host.promise(), Some(promise), "it is given all the same");
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(kept(|_| (), host.clone()), [""; 0]);
        // The host has more.
        let less = |promise: &mut Promise| {
            (promise.sve, promise.pmu, promise.ipa_bits) = (false, false, 40);
        };
        assert_eq!(kept(less, host.clone()), [""; 0]);
        assert_eq!(
            kept(|promise| promise.counter_hz = 1, host.clone()),
            ["the counter's frequency in Hz: the saved machine has 1, this host 1000000000"]
        );
        assert_eq!(
            kept(|promise| promise.ipa_bits = 48, host.clone()),
            ["guest physical address bits: the saved machine has 48, this host 44"]
        );
        let plain = Aarch64 {
            pmu: false,
            sve: false,
            pointer_authentication: false,
            ..host
        };
        assert_eq!(kept(|_| (), plain).len(), 3);
    }
}
