//! What the control socket tells of guests that use devices: metrics and events.

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::common::{finish, read_until};
use crate::{SECTOR, disk, is_pc, start, virtio_places};

/// A client of a control socket.
pub(crate) struct Client {
    stream: UnixStream,
    lines: Lines<BufReader<UnixStream>>,
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        let mut client = Self {
            lines: BufReader::new(stream.try_clone().unwrap()).lines(),
            stream,
        };
        assert_eq!(client.next().unwrap()["vmm"], "vmm-reference");
        client
    }

    /// The next line; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<Value> {
        let line = self.lines.next()?.ok()?;
        Some(serde_json::from_str(&line).unwrap())
    }

    pub(crate) fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.stream, "{request}").unwrap();
        self.next().unwrap()["ok"].take()
    }

    pub(crate) fn metrics(&mut self) -> Value {
        self.ask(&json!({ "command": "metrics" }))
    }

    /// A client that only listens.
    pub(crate) fn subscribe(socket: &Path) -> Self {
        let mut client = Self::connect(socket);
        client.ask(&json!({ "subscribe": [] }));
        client
    }
}

/// What is told of a device.
pub(crate) fn device<'a>(metrics: &'a Value, id: &str) -> &'a Value {
    let devices = metrics["devices"].as_array().unwrap();
    devices.iter().find(|device| device["id"] == id).unwrap()
}

#[test]
#[cfg(feature = "virtio-blk")]
fn a_guest_s_disk_requests_are_counted_over_a_restart_and_its_drivers_are_told_of() {
    if !is_pc() {
        return;
    }
    let disk = disk(&[0; 8 * SECTOR]);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control");
    let blk = format!("--blk={},id=root", disk.path().display());
    let control = format!("--control={}", socket.display());
    let arguments = [&*blk, "--on-reboot=restart", "--vcpus=2", &*control];
    let places = virtio_places(&arguments[..3]);
    let mut child = start(&format!("reboots starts=2 {places}"), &arguments);
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut exits = [0, 0];
    let mut listener = None;
    for number in 1..=2u64 {
        read_until(&mut stdout, &format!("start {number}\n"));
        let mut client = Client::connect(&socket);
        let metrics = client.metrics();
        let root = device(&metrics, "root");
        for name in ["read", "write"] {
            let operation = &root["operations"][name];
            assert_eq!(operation["requests"], number, "{metrics}");
            assert_eq!(operation["bytes"], 512 * number, "{metrics}");
            assert_eq!(operation["errors"], 0, "{metrics}");
            let latency = &operation["latency"];
            assert_eq!(latency["count"], number, "{metrics}");
            let buckets = latency["buckets"].as_array().unwrap().iter();
            let sum: u64 = buckets.map(|b| b["count"].as_u64().unwrap()).sum();
            assert_eq!(sum, number, "{metrics}");
        }
        assert_eq!(root["kind"], "blk");
        // Two requests of each start, of which the second may be seen without a word.
        for counted in [&root["notifications"][0], &root["interrupts"]] {
            let counted = counted.as_u64().unwrap();
            assert!((number..=2 * number).contains(&counted), "{metrics}");
        }
        let serial = &metrics["registers"][0];
        assert_eq!(serial["device"], "serial");
        assert!(serial["writes"].as_u64() > Some(7 * number), "{metrics}");
        assert_eq!(
            (&root["drivers"], &root["needs_resets"]),
            (&json!(number), &json!(0))
        );
        // The first vCPU works, the other one waits to be started.
        let vcpus = metrics["vcpus"].as_array().unwrap();
        assert_eq!(vcpus.len(), 2);
        assert!(
            vcpus[0]["cpu_us"].as_u64() > vcpus[1]["cpu_us"].as_u64(),
            "{metrics}"
        );
        for (vcpu, before) in vcpus.iter().zip(&mut exits) {
            let exits = vcpu["exits"].as_u64().unwrap();
            assert!(exits >= *before, "a restart does not begin anew: {metrics}");
            *before = exits;
        }
        assert!(exits[0] > 0);
        assert!(metrics["resident_bytes"].as_u64() > Some(0));
        if number == 1 {
            listener = Some(Client::subscribe(&socket));
        }
        stdin.write_all(b"x").unwrap();
    }
    assert_eq!(passed_rest(child, &mut stdout), "");
    let mut listener = listener.unwrap();
    let events: Vec<_> = std::iter::from_fn(|| listener.next()).collect();
    let place = |wanted: &Value| {
        let is_it = |event: &Value| {
            let wanted = wanted.as_object().unwrap();
            wanted.iter().all(|(key, value)| event[key] == *value)
        };
        events
            .iter()
            .position(is_it)
            .unwrap_or_else(|| panic!("{wanted}: {events:?}"))
    };
    let restart = place(&json!({ "event": "restart", "restarts": 1 }));
    let ready = place(&json!({ "event": "driver-ready", "device": "root", "times": 2 }));
    let ended = place(&json!({ "event": "ended", "failed": false }));
    assert!(restart < ready && ready < ended, "{events:?}");
}

/// The rest of what a guest that passes prints, but for its last line.
fn passed_rest(mut child: std::process::Child, stdout: &mut impl std::io::Read) -> String {
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    child.stdout = None;
    let ended = finish(child);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    rest.trim_end().strip_suffix("EXIT 0").unwrap().to_owned()
}
