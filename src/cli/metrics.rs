//! What a VM has done, as text: for people, and in the text exposition format of Prometheus.

use vmm_reference::{DeviceReport, LATENCY_BOUNDS_US, Latencies, Metrics, OperationMetrics};

/// The value of a sample.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Number(u64),
    /// Microseconds, shown as seconds.
    Seconds(u64),
    Latencies(&'a Latencies),
}

/// Names and values of a sample's labels.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Samples of one name.
struct Family<'a> {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    samples: Vec<(Labels<'a>, Value<'a>)>,
}

/// The exits of all vCPUs by what for.
fn exits(metrics: &Metrics) -> [(&'static str, u64); 6] {
    let exits = &metrics.exits;
    [
        ("port-read", exits.port_reads),
        ("port-write", exits.port_writes),
        ("mmio-read", exits.mmio_reads),
        ("mmio-write", exits.mmio_writes),
        ("kick", exits.kicks),
        ("other", exits.other),
    ]
}

/// For people.
pub(super) fn text(metrics: &Metrics) -> String {
    let mut lines: Vec<(String, String)> = Vec::new();
    for (kind, count) in exits(metrics) {
        lines.push((format!("exits {kind}"), count.to_string()));
    }
    lines.push(("pauses".to_owned(), metrics.pauses.to_string()));
    lines.push(("paused".to_owned(), milliseconds(metrics.paused_us)));
    let resident = format!("{} KiB", metrics.resident_bytes >> 10);
    lines.push(("resident".to_owned(), resident));
    for vcpu in &metrics.vcpus {
        let had = format!("{:.3} s, {} exits", seconds(vcpu.cpu_us), vcpu.exits);
        lines.push((format!("vcpu {}", vcpu.id), had));
    }
    for device in &metrics.registers {
        let used = format!("{} reads, {} writes", device.reads, device.writes);
        lines.push((format!("registers {}", device.device), used));
    }
    for device in &metrics.devices {
        device_text(device, &mut lines);
    }
    let lines = lines
        .iter()
        .map(|(name, value)| format!("{name:20} {value}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// What a device has done and met; what did not happen is left out.
fn device_text(device: &DeviceReport, lines: &mut Vec<(String, String)>) {
    let (id, counted) = (&device.id, &device.counted);
    for (name, operation) in &counted.operations {
        if operation.requests > 0 {
            lines.push((format!("{id} {name}"), operation_text(operation)));
        }
    }
    for (name, value) in [
        ("stalls", counted.stalls),
        ("limiter waits", counted.limiter_waits),
        ("notifications", counted.notifications.iter().sum()),
        ("interrupts", counted.interrupts),
        ("config interrupts", counted.config_interrupts),
        ("drivers", counted.drivers),
        ("needs resets", counted.needs_resets),
        ("host errors", counted.host_errors),
        ("streams", counted.streams.unwrap_or_default()),
    ] {
        if value > 0 {
            lines.push((format!("{id} {name}"), value.to_string()));
        }
    }
    if counted.limiter_wait_us > 0 {
        let waited = milliseconds(counted.limiter_wait_us);
        lines.push((format!("{id} limiter wait"), waited));
    }
}

fn operation_text(operation: &OperationMetrics) -> String {
    let mut text = format!("{}, {} bytes", operation.requests, operation.bytes);
    if operation.errors > 0 {
        text += &format!(", {} errors", operation.errors);
    }
    if let Some(latency) = &operation.latency
        && let Some(average) = latency.sum_us.checked_div(latency.count)
    {
        text += &format!(", {} on average", milliseconds(average));
    }
    text
}

fn milliseconds(micros: u64) -> String {
    format!("{:.3} ms", seconds(micros) * 1e3)
}

/// Microseconds in seconds.
#[allow(clippy::cast_precision_loss)] // for people, and beyond 2^53 nobody looks
pub(super) fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// The text exposition format (Prometheus documentation, "Exposition formats").
pub(super) fn prometheus(metrics: &Metrics) -> String {
    let ids: Vec<_> = metrics
        .vcpus
        .iter()
        .map(|vcpu| vcpu.id.to_string())
        .collect();
    let mut text = String::new();
    for family in machine(metrics).into_iter().chain(vcpus(metrics, &ids)) {
        expose(&family, &mut text);
    }
    expose(&registers(metrics), &mut text);
    for family in operations(metrics).into_iter().chain(devices(metrics)) {
        expose(&family, &mut text);
    }
    text.truncate(text.trim_end().len());
    text
}

fn machine(metrics: &Metrics) -> [Family<'_>; 4] {
    let of = |value| vec![(Labels::new(), value)];
    let exits = exits(metrics).into_iter();
    let exits = exits.map(|(kind, count)| (vec![("kind", kind)], Value::Number(count)));
    [
        Family {
            name: "exits_total",
            kind: "counter",
            help: "Exits of vCPUs to the VMM.",
            samples: exits.collect(),
        },
        Family {
            name: "pauses_total",
            kind: "counter",
            help: "Pauses.",
            samples: of(Value::Number(metrics.pauses)),
        },
        Family {
            name: "paused_seconds_total",
            kind: "counter",
            help: "Time in pauses that have ended.",
            samples: of(Value::Seconds(metrics.paused_us)),
        },
        Family {
            name: "resident_bytes",
            kind: "gauge",
            help: "Resident memory.",
            samples: of(Value::Number(metrics.resident_bytes)),
        },
    ]
}

fn vcpus<'a>(metrics: &'a Metrics, ids: &'a [String]) -> [Family<'a>; 2] {
    let of = |value: fn(u64) -> Value<'a>, number: fn(&vmm_reference::VcpuMetrics) -> u64| {
        let vcpus = ids.iter().zip(&metrics.vcpus);
        let samples = vcpus.map(|(id, vcpu)| (vec![("vcpu", &**id)], value(number(vcpu))));
        samples.collect()
    };
    [
        Family {
            name: "vcpu_cpu_seconds_total",
            kind: "counter",
            help: "Processor time of vCPUs, in the guest and in the VMM.",
            samples: of(Value::Seconds, |vcpu| vcpu.cpu_us),
        },
        Family {
            name: "vcpu_exits_total",
            kind: "counter",
            help: "Exits of each vCPU, kicks included.",
            samples: of(Value::Number, |vcpu| vcpu.exits),
        },
    ]
}

/// How often the registers of the platform's devices were used.
fn registers(metrics: &Metrics) -> Family<'_> {
    let devices = metrics.registers.iter();
    let samples = devices.flat_map(|device| {
        [("read", device.reads), ("write", device.writes)].map(|(kind, number)| {
            let labels = vec![("device", &*device.device), ("kind", kind)];
            (labels, Value::Number(number))
        })
    });
    Family {
        name: "register_accesses_total",
        kind: "counter",
        help: "Accesses of vCPUs to registers of devices of the platform.",
        samples: samples.collect(),
    }
}

fn labels(device: &DeviceReport) -> Labels<'_> {
    vec![("id", &device.id), ("kind", &device.kind)]
}

/// What devices do.
fn operations(metrics: &Metrics) -> [Family<'_>; 4] {
    let of = |value: fn(&OperationMetrics) -> Option<Value<'_>>| {
        let mut samples = Vec::new();
        for device in &metrics.devices {
            for (name, operation) in &device.counted.operations {
                let mut labels = labels(device);
                labels.push(("operation", name));
                samples.extend(value(operation).map(|value| (labels, value)));
            }
        }
        samples
    };
    [
        Family {
            name: "device_requests_total",
            kind: "counter",
            help: "Requests, frames and packets, failures included.",
            samples: of(|operation| Some(Value::Number(operation.requests))),
        },
        Family {
            name: "device_bytes_total",
            kind: "counter",
            help: "Bytes of data that were moved.",
            samples: of(|operation| Some(Value::Number(operation.bytes))),
        },
        Family {
            name: "device_errors_total",
            kind: "counter",
            help: "Requests that failed, frames and packets that were dropped.",
            samples: of(|operation| Some(Value::Number(operation.errors))),
        },
        Family {
            name: "device_request_seconds",
            kind: "histogram",
            help: "Time from the queue to the answer.",
            samples: of(|operation| operation.latency.as_ref().map(Value::Latencies)),
        },
    ]
}

/// What devices meet.
fn devices(metrics: &Metrics) -> Vec<Family<'_>> {
    type Number = fn(&DeviceReport) -> Option<Value<'_>>;
    let all: [(_, _, _, Number); 10] = [
        (
            "device_stalls_total",
            "counter",
            "Times when something had no room.",
            |device| Some(Value::Number(device.counted.stalls)),
        ),
        (
            "device_limiter_waits_total",
            "counter",
            "Times when limits held something back.",
            |device| Some(Value::Number(device.counted.limiter_waits)),
        ),
        (
            "device_limiter_wait_seconds_total",
            "counter",
            "Time in which limits held something back.",
            |device| Some(Value::Seconds(device.counted.limiter_wait_us)),
        ),
        (
            "device_notifications_total",
            "counter",
            "Notifications by the driver, of all queues.",
            |device| Some(Value::Number(device.counted.notifications.iter().sum())),
        ),
        (
            "device_interrupts_total",
            "counter",
            "Interrupts for what queues have.",
            |device| Some(Value::Number(device.counted.interrupts)),
        ),
        (
            "device_config_interrupts_total",
            "counter",
            "Interrupts for a change of the configuration.",
            |device| Some(Value::Number(device.counted.config_interrupts)),
        ),
        (
            "device_drivers_total",
            "counter",
            "Times when a driver became ready.",
            |device| Some(Value::Number(device.counted.drivers)),
        ),
        (
            "device_needs_resets_total",
            "counter",
            "Times when the device needed a reset.",
            |device| Some(Value::Number(device.counted.needs_resets)),
        ),
        (
            "device_host_errors_total",
            "counter",
            "Times when the host failed the device.",
            |device| Some(Value::Number(device.counted.host_errors)),
        ),
        (
            "device_streams",
            "gauge",
            "Connections that are open.",
            |device| device.counted.streams.map(Value::Number),
        ),
    ];
    let family = |(name, kind, help, number): (_, _, _, Number)| Family {
        name,
        kind,
        help,
        samples: metrics
            .devices
            .iter()
            .filter_map(|device| Some((labels(device), number(device)?)))
            .collect(),
    };
    all.into_iter().map(family).collect()
}

/// Appends a family, unless there is nothing of it.
fn expose(family: &Family<'_>, text: &mut String) {
    let Family {
        name,
        kind,
        help,
        samples,
    } = family;
    if samples.is_empty() {
        return;
    }
    *text += &format!("# HELP vmm_{name} {help}\n# TYPE vmm_{name} {kind}\n");
    for (labels, value) in samples {
        let labels: Vec<_> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        let mut line = |end: &str, more: Option<String>, value: String| {
            let labels: Vec<_> = labels.iter().cloned().chain(more).collect();
            let labels = match &*labels.join(",") {
                "" => String::new(),
                labels => format!("{{{labels}}}"),
            };
            *text += &format!("vmm_{name}{end}{labels} {value}\n");
        };
        match value {
            Value::Number(number) => line("", None, number.to_string()),
            Value::Seconds(micros) => line("", None, seconds(*micros).to_string()),
            Value::Latencies(latencies) => {
                let mut sum = 0u64;
                for bound in LATENCY_BOUNDS_US {
                    let buckets = latencies.buckets.iter();
                    let bucket = buckets.filter(|bucket| bucket.up_to_us == bound);
                    sum = bucket.fold(sum, |sum, bucket| sum.saturating_add(bucket.count));
                    let bound = format!("le=\"{}\"", seconds(bound));
                    line("_bucket", Some(bound), sum.to_string());
                }
                let count = latencies.count.to_string();
                line("_bucket", Some("le=\"+Inf\"".to_owned()), count.clone());
                line("_sum", None, seconds(latencies.sum_us).to_string());
                line("_count", None, count);
            }
        }
    }
}

/// A label's value.
fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    value.replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metrics(id: &str) -> Metrics {
        let value = json!({
            "exits": {"port_reads": 1, "port_writes": 2, "mmio_reads": 3, "mmio_writes": 4, "other": 5, "kicks": 6},
            "pauses": 7, "paused_us": 8500, "resident_bytes": 4096,
            "vcpus": [{"id": 0, "cpu_us": 1_500_000, "exits": 21}],
            "registers": [{"device": "serial", "reads": 8, "writes": 9}],
            "devices": [
                {"id": id, "kind": "blk", "stalls": 2, "notifications": [3, 4], "interrupts": 5, "limiter_wait_us": 1_250_000,
                 "operations": {"read": {"requests": 4, "bytes": 2048, "errors": 1, "latency": {
                    "count": 4, "sum_us": 9_000_100,
                    "buckets": [{"up_to_us": 16, "count": 1}, {"up_to_us": 64, "count": 2}]}}}},
                {"id": "vsock0", "kind": "vsock", "streams": 3, "operations": {}},
            ],
        });
        serde_json::from_value(value).expect("metrics")
    }

    #[test]
    fn a_histogram_has_cumulative_buckets() {
        let text = prometheus(&metrics("blk0"));
        let labels = "{id=\"blk0\",kind=\"blk\",operation=\"read\"";
        for (end, more, value) in [
            ("_bucket", ",le=\"0.000016\"}", "1"),
            ("_bucket", ",le=\"0.000032\"}", "1"),
            ("_bucket", ",le=\"0.000064\"}", "3"),
            ("_bucket", ",le=\"8.388608\"}", "3"),
            ("_bucket", ",le=\"+Inf\"}", "4"),
            ("_sum", "}", "9.0001"),
            ("_count", "}", "4"),
        ] {
            let line = format!("\nvmm_device_request_seconds{end}{labels}{more} {value}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
        for line in [
            "# TYPE vmm_device_request_seconds histogram",
            "vmm_exits_total{kind=\"mmio-read\"} 3",
            "vmm_paused_seconds_total 0.0085",
            "vmm_vcpu_cpu_seconds_total{vcpu=\"0\"} 1.5",
            "vmm_device_errors_total{id=\"blk0\",kind=\"blk\",operation=\"read\"} 1",
            "vmm_device_limiter_wait_seconds_total{id=\"blk0\",kind=\"blk\"} 1.25",
            "vmm_device_streams{id=\"vsock0\",kind=\"vsock\"} 3",
            "vmm_register_accesses_total{device=\"serial\",kind=\"write\"} 9",
            "vmm_device_notifications_total{id=\"blk0\",kind=\"blk\"} 7",
            "vmm_device_interrupts_total{id=\"blk0\",kind=\"blk\"} 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("vmm_device_streams{id=\"blk0\""));
    }

    #[test]
    fn labels_are_escaped() {
        let text = prometheus(&metrics("a\"b\\c\nd"));
        let label = "vmm_device_stalls_total{id=\"a\\\"b\\\\c\\nd\",kind=\"blk\"} 2";
        assert!(text.lines().any(|line| line == label), "{text}");
    }

    #[test]
    fn people_see_what_happened() {
        let text = text(&metrics("blk0"));
        for line in [
            "exits mmio-write     4",
            "paused               8.500 ms",
            "vcpu 0               1.500 s, 21 exits",
            "blk0 read            4, 2048 bytes, 1 errors, 2250.025 ms on average",
            "registers serial     8 reads, 9 writes",
            "blk0 notifications   7",
            "blk0 interrupts      5",
            "blk0 stalls          2",
            "blk0 limiter wait    1250.000 ms",
            "vsock0 streams       3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("limiter waits"), "{text}");
    }
}
