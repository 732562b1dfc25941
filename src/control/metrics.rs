//! What a machine has done so far, counted where it happens (see [`devices::Counter`]).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use devices::{Counter, DeviceMetrics};
use serde::{Deserialize, Serialize};

use crate::vm::cpu_time::CpuTime;
use crate::vm::exit::Exit;

/// What a vCPU's thread counts.
#[derive(Debug, Default)]
pub(crate) struct VcpuCounters {
    port_reads: Counter,
    port_writes: Counter,
    mmio_reads: Counter,
    mmio_writes: Counter,
    other: Counter,
    kicks: Counter,
    pub(crate) time: CpuTime,
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

    fn exits(&self) -> Exits {
        Exits {
            port_reads: self.port_reads.get(),
            port_writes: self.port_writes.get(),
            mmio_reads: self.mmio_reads.get(),
            mmio_writes: self.mmio_writes.get(),
            other: self.other.get(),
            kicks: self.kicks.get(),
        }
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
    /// Each vCPU, in the order of their ids.
    #[serde(default)]
    pub vcpus: Vec<VcpuMetrics>,
    /// Each device of the platform of which it is counted, in the order of the plan.
    #[serde(default)]
    pub registers: Vec<RegisterMetrics>,
    /// Each device that has an id, in the order of the plan.
    #[serde(default)]
    pub devices: Vec<DeviceReport>,
}

/// What a vCPU has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct VcpuMetrics {
    /// Its number.
    pub id: u32,
    /// Processor time of its thread, in the guest and in the VMM, in microseconds.
    pub cpu_us: u64,
    /// How often it left the guest for the VMM, kicks included.
    pub exits: u64,
}

/// How often vCPUs have used the registers of a device of the platform.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct RegisterMetrics {
    /// `serial`, `keyboard` (its controller, on x86_64) or `rtc`.
    pub device: String,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// What a device has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct DeviceReport {
    /// Its name.
    pub id: String,
    /// What it is, as in [`DeviceStatus`](crate::DeviceStatus).
    pub kind: String,
    /// What was counted.
    #[serde(flatten)]
    pub counted: DeviceMetrics,
}

impl Metrics {
    /// Adds what was counted of the registers of devices in a run, by their names.
    pub(crate) fn add_accesses(
        &mut self,
        accesses: impl Iterator<Item = (&'static str, [u64; 2])>,
    ) {
        for (device, [reads, writes]) in accesses {
            let mut known = self.registers.iter_mut();
            match known.find(|known| known.device == device) {
                Some(known) => {
                    known.reads = known.reads.saturating_add(reads);
                    known.writes = known.writes.saturating_add(writes);
                }
                None => self.registers.push(RegisterMetrics {
                    device: device.to_owned(),
                    reads,
                    writes,
                }),
            }
        }
    }

    /// Adds what the vCPUs of a run have counted, by their ids.
    pub(crate) fn add_vcpus(&mut self, vcpus: &[Arc<VcpuCounters>]) {
        for (id, counters) in (0..).zip(vcpus) {
            let exits = counters.exits();
            self.exits.add(&exits);
            let (cpu_us, exits) = (counters.time.micros(), exits.sum());
            match self.vcpus.iter_mut().find(|vcpu| vcpu.id == id) {
                Some(vcpu) => {
                    vcpu.cpu_us = vcpu.cpu_us.saturating_add(cpu_us);
                    vcpu.exits = vcpu.exits.saturating_add(exits);
                }
                None => self.vcpus.push(VcpuMetrics { id, cpu_us, exits }),
            }
        }
    }
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
    fn add(&mut self, other: &Self) {
        self.port_reads += other.port_reads;
        self.port_writes += other.port_writes;
        self.mmio_reads += other.mmio_reads;
        self.mmio_writes += other.mmio_writes;
        self.other += other.other;
        self.kicks += other.kicks;
    }

    fn sum(&self) -> u64 {
        let ports = self.port_reads + self.port_writes;
        ports + self.mmio_reads + self.mmio_writes + self.other + self.kicks
    }
}

/// Where the kernel tells how much memory this process has. It stays open: a jail has no /proc.
#[derive(Debug)]
pub(crate) struct Resident(Option<File>);

impl Resident {
    pub(crate) fn open() -> Self {
        Self(File::open("/proc/self/statm").ok())
    }

    /// It does not tell.
    #[cfg(feature = "snapshot")]
    pub(crate) fn unknown() -> Self {
        Self(None)
    }

    /// The resident memory of this process in bytes (proc_pid_statm(5)); 0 where /proc does not tell.
    pub(crate) fn bytes(&self) -> u64 {
        let mut text = [0; 128];
        let read = self.0.as_ref().map(|file| file.read_at(&mut text, 0));
        let len = read.and_then(Result::ok).unwrap_or_default();
        let text = text.get(..len).unwrap_or_default();
        let pages = std::str::from_utf8(text).ok().and_then(|text| {
            let second = text.split_ascii_whitespace().nth(1)?;
            second.parse::<u64>().ok()
        });
        pages.unwrap_or_default() * rustix::param::page_size() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_anew_each_time() {
        let resident = Resident::open();
        let before = resident.bytes();
        assert!(before > 0);
        let touched = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = resident.bytes();
        assert!(after >= before + (48 << 20), "{before} {after}");
        drop(touched);
        assert_eq!(Resident(None).bytes(), 0);
    }

    #[test]
    fn vcpus_are_added_by_their_ids_over_restarts() {
        let run = [Arc::<VcpuCounters>::default(), Arc::default()];
        run[1].count(&Exit::PortIn {
            port: 0,
            data: &mut [],
            size: 1,
        });
        run[1].count_kick();
        let mut metrics = Metrics::default();
        metrics.add_vcpus(&run);
        metrics.add_vcpus(&run);
        let exits: Vec<_> = metrics.vcpus.iter().map(|v| (v.id, v.exits)).collect();
        assert_eq!(exits, [(0, 0), (1, 4)]);
        assert_eq!((metrics.exits.port_reads, metrics.exits.kicks), (2, 2));
    }

    #[test]
    fn accesses_are_added_by_their_devices_over_restarts() {
        let mut metrics = Metrics::default();
        for _ in 0..2 {
            metrics.add_accesses([("serial", [1, 2]), ("rtc", [3, 4])].into_iter());
        }
        let found: Vec<_> = metrics
            .registers
            .iter()
            .map(|of| (&*of.device, of.reads, of.writes))
            .collect();
        assert_eq!(found, [("serial", 2, 4), ("rtc", 6, 8)]);
    }

    #[test]
    fn what_an_older_version_tells_is_understood() {
        let text = r#"{"exits":{"port_reads":11,"port_writes":160,"mmio_reads":0,"mmio_writes":0,"other":0,
            "kicks":1},"pauses":1,"paused_us":2104,"resident_bytes":4169728}"#;
        let metrics: Metrics = serde_json::from_str(text).expect("metrics");
        assert_eq!((metrics.pauses, metrics.vcpus.len()), (1, 0));
    }
}
