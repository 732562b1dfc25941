//! What a machine counts, by the names that clients know.

use serde_json::{Map, Value};
use vmm_reference::{DeviceReport, Metrics, OperationMetrics};

use super::keys::{self, add as add_to};

/// What the ids of disks and network devices begin with, as the groups of their metrics do.
const DISK: &str = "block_";
const NET: &str = "net_";

/// Adds what was counted since `before`.
pub(super) fn add(line: &mut Map<String, Value>, before: &Metrics, now: &Metrics) {
    let (was, is) = (&before.exits, &now.exits);
    for (key, was, is) in [
        ("exit_io_in", was.port_reads, is.port_reads),
        ("exit_io_out", was.port_writes, is.port_writes),
        ("exit_mmio_read", was.mmio_reads, is.mmio_reads),
        ("exit_mmio_write", was.mmio_writes, is.mmio_writes),
    ] {
        add_to(line, "vcpu", key, is.saturating_sub(was));
    }
    for registers in &now.registers {
        let mut devices = before.registers.iter();
        let was = devices.find(|other| other.device == registers.device);
        let (reads, writes) = was.map_or((0, 0), |was| (was.reads, was.writes));
        let group = match &*registers.device {
            "serial" => "uart",
            "keyboard" => "i8042",
            _ => continue,
        };
        for (key, was, is) in [
            ("read_count", reads, registers.reads),
            ("write_count", writes, registers.writes),
        ] {
            add_to(line, group, key, is.saturating_sub(was));
        }
    }
    for device in &now.devices {
        let was = before.devices.iter().find(|other| other.id == device.id);
        let since = Since { was, is: device };
        since.interrupts(line);
        match &*device.kind {
            "blk" => since.disk(line),
            "net" => since.net(line),
            "vsock" => since.vsock(line),
            "rng" => since.entropy(line),
            "balloon" => since.balloon(line),
            _ => {}
        }
    }
}

/// A device before and now.
struct Since<'a> {
    was: Option<&'a DeviceReport>,
    is: &'a DeviceReport,
}

impl Since<'_> {
    /// How much more of something there is.
    fn more(&self, read: impl Fn(&DeviceReport) -> u64) -> u64 {
        read(self.is).saturating_sub(self.was.map(read).unwrap_or_default())
    }

    /// How much more of something that an operation counts.
    fn of(&self, name: &str, read: impl Fn(&OperationMetrics) -> u64) -> u64 {
        self.more(|device| device.counted.operations.get(name).map_or(0, &read))
    }

    fn count(&self, name: &str) -> u64 {
        self.of(name, |operation| operation.requests)
    }

    fn bytes(&self, name: &str) -> u64 {
        self.of(name, |operation| operation.bytes)
    }

    fn errors(&self, name: &str) -> u64 {
        self.of(name, |operation| operation.errors)
    }

    fn micros(&self, name: &str) -> u64 {
        self.of(name, |operation| {
            operation
                .latency
                .as_ref()
                .map_or(0, |latency| latency.sum_us)
        })
    }

    fn waits(&self) -> u64 {
        self.more(|device| device.counted.limiter_waits)
    }

    /// How often the driver has notified the device of some of its queues.
    fn notified(&self, is_one: impl Fn(usize) -> bool) -> u64 {
        self.more(|device| {
            let queues = device.counted.notifications.iter().enumerate();
            let wanted = queues.filter(|(number, _)| is_one(*number));
            wanted.map(|(_, notifications)| *notifications).sum()
        })
    }

    fn interrupts(&self, line: &mut Map<String, Value>) {
        for (key, value) in [
            ("triggers", self.more(|device| device.counted.interrupts)),
            (
                "config_updates",
                self.more(|device| device.counted.config_interrupts),
            ),
        ] {
            add_to(line, "interrupts", key, value);
        }
    }

    fn disk(&self, line: &mut Map<String, Value>) {
        let group = self.own_group(line, "block", DISK);
        for (key, value) in [
            ("queue_event_count", self.notified(|_| true)),
            ("read_count", self.count("read")),
            ("write_count", self.count("write")),
            ("flush_count", self.count("flush")),
            ("read_bytes", self.bytes("read")),
            ("write_bytes", self.bytes("write")),
            (
                "execute_fails",
                self.errors("read") + self.errors("write") + self.errors("flush"),
            ),
            ("rate_limiter_throttled_events", self.waits()),
            ("rate_limiter_event_count", self.waits()),
        ] {
            for group in ["block", &*group] {
                add_to(line, group, key, value);
            }
        }
        for (key, name) in [("read_agg", "read"), ("write_agg", "write")] {
            for group in ["block", &*group] {
                let object = line.get_mut(group).and_then(Value::as_object_mut);
                if let Some(object) = object {
                    add_to(object, key, "sum_us", self.micros(name));
                }
            }
        }
    }

    fn net(&self, line: &mut Map<String, Value>) {
        let group = self.own_group(line, "net", NET);
        for (key, value) in [
            (
                "rx_queue_event_count",
                self.notified(|queue| queue.is_multiple_of(2)),
            ),
            (
                "tx_queue_event_count",
                self.notified(|queue| !queue.is_multiple_of(2)),
            ),
            ("rx_count", self.count("receive")),
            ("rx_packets_count", self.count("receive")),
            ("rx_bytes_count", self.bytes("receive")),
            ("rx_fails", self.errors("receive")),
            ("tap_read_fails", self.errors("receive")),
            ("tx_count", self.count("transmit")),
            ("tx_packets_count", self.count("transmit")),
            ("tx_bytes_count", self.bytes("transmit")),
            ("tx_fails", self.errors("transmit")),
            ("tap_write_fails", self.errors("transmit")),
            (
                "no_rx_avail_buffer",
                self.more(|device| device.counted.stalls),
            ),
            ("rx_rate_limiter_throttled", self.waits()),
        ] {
            for group in ["net", &*group] {
                add_to(line, group, key, value);
            }
        }
    }

    fn vsock(&self, line: &mut Map<String, Value>) {
        for (key, value) in [
            ("rx_queue_event_count", self.notified(|queue| queue == 0)),
            ("tx_queue_event_count", self.notified(|queue| queue == 1)),
            ("rx_packets_count", self.count("receive")),
            ("rx_bytes_count", self.bytes("receive")),
            ("tx_packets_count", self.count("transmit")),
            ("tx_bytes_count", self.bytes("transmit")),
            ("conns_added", self.count("connect") + self.count("accept")),
        ] {
            add_to(line, "vsock", key, value);
        }
    }

    fn entropy(&self, line: &mut Map<String, Value>) {
        for (key, value) in [
            ("entropy_event_count", self.count("read")),
            ("entropy_bytes", self.bytes("read")),
            ("host_rng_fails", self.errors("read")),
            ("entropy_rate_limiter_throttled", self.waits()),
        ] {
            add_to(line, "entropy", key, value);
        }
    }

    fn balloon(&self, line: &mut Map<String, Value>) {
        for (key, name) in [
            ("inflate_count", "inflate"),
            ("deflate_count", "deflate"),
            ("stats_updates_count", "statistics"),
        ] {
            add_to(line, "balloon", key, self.count(name));
        }
    }

    /// A group of the device's own, and its name.
    fn own_group(&self, line: &mut Map<String, Value>, kind: &str, start: &str) -> String {
        let id = &self.is.id;
        let name = if id.starts_with(start) {
            id.clone()
        } else {
            format!("{start}{id}")
        };
        line.insert(name.clone(), keys::zeros(kind).into());
        name
    }
}
