//! What a machine has done so far, counted where it happens.
//!
//! A counter has one writer, its thread, which only loads and stores it: readers see a value that was true a
//! moment ago, and the writer pays next to nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::vm::exit::Exit;

/// A number that one thread counts and others read.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Only its own thread may call this.
    pub(crate) fn add(&self, amount: u64) {
        let before = self.0.load(Ordering::Relaxed);
        self.0.store(before.wrapping_add(amount), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a vCPU's thread counts.
#[derive(Debug, Default)]
pub(crate) struct VcpuCounters {
    port_reads: Counter,
    port_writes: Counter,
    mmio_reads: Counter,
    mmio_writes: Counter,
    other: Counter,
    kicks: Counter,
}

impl VcpuCounters {
    pub(crate) fn count(&self, exit: &Exit<'_>) {
        let counter = match exit {
            Exit::PortIn { .. } => &self.port_reads,
            Exit::PortOut { .. } => &self.port_writes,
            Exit::MmioRead { .. } => &self.mmio_reads,
            Exit::MmioWrite { .. } => &self.mmio_writes,
            _ => &self.other,
        };
        counter.add(1);
    }

    /// KVM_RUN ended by a signal.
    pub(crate) fn count_kick(&self) {
        self.kicks.add(1);
    }
}

/// What a machine has done since it was built; a restart does not begin anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Metrics {
    /// How often vCPUs left the guest for the VMM, by what for.
    pub exits: Exits,
    /// How often the machine was paused.
    pub pauses: u64,
    /// How long the machine stood still in all pauses together that have ended, in microseconds.
    pub paused_us: u64,
    /// Guest RAM and the VMM's own memory that the host has given pages to, in bytes.
    pub resident_bytes: u64,
}

/// Exits of all vCPUs together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Exits {
    /// Reads of ports.
    pub port_reads: u64,
    /// Writes to ports.
    pub port_writes: u64,
    /// Reads of memory that is not RAM.
    pub mmio_reads: u64,
    /// Writes to memory that is not RAM.
    pub mmio_writes: u64,
    /// All that KVM reports besides.
    pub other: u64,
    /// Signals, of which each pause is one.
    pub kicks: u64,
}

impl Exits {
    /// Adds what the vCPUs have counted.
    pub(crate) fn add_all(&mut self, vcpus: &[VcpuCounters]) {
        vcpus.iter().for_each(|counters| self.add(counters));
    }

    fn add(&mut self, counters: &VcpuCounters) {
        self.port_reads += counters.port_reads.get();
        self.port_writes += counters.port_writes.get();
        self.mmio_reads += counters.mmio_reads.get();
        self.mmio_writes += counters.mmio_writes.get();
        self.other += counters.other.get();
        self.kicks += counters.kicks.get();
    }
}

/// A time in whole microseconds.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The resident memory of this process in bytes (proc_pid_statm(5)); 0 where /proc does not tell.
pub(crate) fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or_default() * rustix::param::page_size() as u64
}
