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

    /// How often its driver has broken a rule, so that it stood still until a reset.
    fn stops(&self) -> u64 {
        self.more(|device| device.counted.needs_resets)
    }

    fn stalls(&self) -> u64 {
        self.more(|device| device.counted.stalls)
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
            ("invalid_reqs_count", self.errors("other")),
            ("event_fails", self.stops()),
            ("io_engine_throttled_events", self.stalls()),
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
            ("no_rx_avail_buffer", self.stalls()),
            ("event_fails", self.stops()),
            // Of both directions.
            ("rx_rate_limiter_throttled", self.waits()),
            ("rx_event_rate_limiter_count", self.waits()),
        ] {
            for group in ["net", &*group] {
                add_to(line, group, key, value);
            }
        }
    }

    fn vsock(&self, line: &mut Map<String, Value>) {
        let added = self.count("connect") + self.count("accept");
        let open = |device: &DeviceReport| device.counted.streams.unwrap_or_default();
        let before = self.was.map(open).unwrap_or_default();
        for (key, value) in [
            ("rx_queue_event_count", self.notified(|queue| queue == 0)),
            ("tx_queue_event_count", self.notified(|queue| queue == 1)),
            ("rx_packets_count", self.count("receive")),
            ("rx_bytes_count", self.bytes("receive")),
            ("tx_packets_count", self.count("transmit")),
            ("tx_bytes_count", self.bytes("transmit")),
            ("tx_write_fails", self.errors("transmit")),
            ("muxer_event_fails", self.stops()),
            ("conns_added", added),
            (
                "conns_removed",
                before.saturating_add(added).saturating_sub(open(self.is)),
            ),
        ] {
            add_to(line, "vsock", key, value);
        }
    }

    fn entropy(&self, line: &mut Map<String, Value>) {
        for (key, value) in [
            ("entropy_event_count", self.count("read")),
            ("entropy_bytes", self.bytes("read")),
            ("host_rng_fails", self.errors("read")),
            ("entropy_event_fails", self.stops()),
            ("rate_limiter_event_count", self.waits()),
            ("entropy_rate_limiter_throttled", self.waits()),
        ] {
            add_to(line, "entropy", key, value);
        }
    }

    fn balloon(&self, line: &mut Map<String, Value>) {
        let failed = self.more(|device| device.counted.host_errors);
        for (key, value) in [
            ("inflate_count", self.count("inflate")),
            ("deflate_count", self.count("deflate")),
            ("event_fails", failed + self.stops()),
            ("stats_updates_count", self.count("statistics")),
            ("stats_update_fails", self.errors("statistics")),
            ("free_page_report_count", self.count("report")),
            ("free_page_report_freed", self.bytes("report")),
            ("free_page_report_fails", self.errors("report")),
            ("free_page_hint_count", self.count("hint")),
            ("free_page_hint_freed", self.bytes("hint")),
            ("free_page_hint_fails", self.errors("hint")),
        ] {
            add_to(line, "balloon", key, value);
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn operation(number: u64) -> Value {
        json!({ "requests": 10 * number, "bytes": 1000 * number, "errors": number })
    }

    /// A machine that has counted this many of everything.
    fn machine(number: u64) -> Metrics {
        let kinds = [
            ("blk", &["read", "write", "flush", "other"][..]),
            ("net", &["receive", "transmit"]),
            ("vsock", &["receive", "transmit", "connect", "accept"]),
            ("rng", &["read"]),
            (
                "balloon",
                &["inflate", "deflate", "statistics", "hint", "report"],
            ),
        ];
        let devices: Vec<_> = kinds
            .iter()
            .map(|(kind, operations)| {
                let operations: Map<_, _> = operations
                    .iter()
                    .map(|name| ((*name).to_owned(), operation(number)))
                    .collect();
                json!({
                    "id": kind, "kind": kind, "operations": operations, "stalls": 2 * number,
                    "limiter_waits": 3 * number, "limiter_wait_us": 0, "notifications": [number, number],
                    "interrupts": 4 * number, "config_interrupts": number, "drivers": 1,
                    "needs_resets": 5 * number, "host_errors": 6 * number,
                    "streams": (*kind == "vsock").then_some(7 * number),
                })
            })
            .collect();
        let mut metrics = serde_json::to_value(Metrics::default()).unwrap();
        metrics["devices"] = devices.into();
        serde_json::from_value(metrics).unwrap()
    }

    #[test]
    fn what_a_machine_counts_has_its_place_in_a_line() {
        let mut line: Map<_, _> = keys::GROUPS
            .iter()
            .map(|(group, _)| ((*group).to_owned(), keys::zeros(group).into()))
            .collect();
        add(&mut line, &machine(1), &machine(3));
        for (group, key, value) in [
            ("block", "read_count", 20),
            ("block", "write_bytes", 2000),
            ("block", "execute_fails", 6),
            ("block", "invalid_reqs_count", 2),
            ("block", "event_fails", 10),
            ("block", "io_engine_throttled_events", 4),
            ("block_blk", "rate_limiter_throttled_events", 6),
            ("net", "tx_packets_count", 20),
            ("net_net", "no_rx_avail_buffer", 4),
            ("net", "event_fails", 10),
            ("net", "rx_event_rate_limiter_count", 6),
            ("vsock", "conns_added", 40),
            // Of 7 and 40 more, 21 are open.
            ("vsock", "conns_removed", 26),
            ("vsock", "tx_write_fails", 2),
            ("vsock", "muxer_event_fails", 10),
            ("entropy", "entropy_bytes", 2000),
            ("entropy", "entropy_event_fails", 10),
            ("entropy", "rate_limiter_event_count", 6),
            ("balloon", "inflate_count", 20),
            ("balloon", "event_fails", 22),
            ("balloon", "stats_update_fails", 2),
            ("balloon", "free_page_report_count", 20),
            ("balloon", "free_page_report_freed", 2000),
            ("balloon", "free_page_report_fails", 2),
            ("balloon", "free_page_hint_count", 20),
            ("balloon", "free_page_hint_freed", 2000),
            ("balloon", "free_page_hint_fails", 2),
            ("interrupts", "triggers", 40),
            ("interrupts", "config_updates", 10),
        ] {
            assert_eq!(line[group][key], value, "{group}.{key}");
        }
    }
}
