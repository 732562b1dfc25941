//! A guest that reads its metadata over its network device, while its machine is paused and its driver begins anew.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{Process, folder, guest_image, program_with_network, wait_for};
use serde_json::{Value, json};

const FETCHES: usize = 30;

#[test]
fn a_guest_reads_its_metadata_through_pauses_and_resets() {
    for transport in [&[][..], &["--enable-pci"]] {
        let folder = folder(&[]);
        let all = [
            &["--api-sock", "api", "--metrics-path", "metrics"],
            transport,
        ]
        .concat();
        let Some(command) = program_with_network(folder.path(), &all) else {
            eprintln!("SKIPPED: no network namespace, or no /dev/net/tun");
            return;
        };
        fs::copy(guest_image(), folder.path().join("kernel")).unwrap();
        let process = Process::of(folder, command);
        wait_for("the socket", || process.path("api").exists().then_some(()));
        let network = r#"{"iface_id":"eth0","host_dev_name":"tap0"}"#;
        process.put("/network-interfaces/eth0", network);
        process.put(
            "/mmds/config",
            r#"{"network_interfaces":["eth0"],"version":"V2"}"#,
        );
        // Several segments.
        let value = "0123456789".repeat(300);
        process.put("/mmds", &json!({ "a": { "b": value } }).to_string());
        let bytes = value.bytes().zip(1..);
        let sum = bytes.fold(0, |sum, (byte, place)| sum + u64::from(byte) * place);
        let line = |number| format!("{number}: {} bytes, {sum:#x}\n", value.len());
        let places = if transport.is_empty() {
            "cmdline"
        } else {
            "pci"
        };
        let boot = json!({
            "kernel_image_path": "kernel",
            "boot_args": format!("test=virtio_fetch path=/a/b fetches={FETCHES} virtio={places} reboot=k"),
        });
        process.put("/boot-source", &boot.to_string());
        process.put("/actions", r#"{"action_type":"InstanceStart"}"#);
        for number in 0..FETCHES / 3 {
            process.wait_for(&line(number));
            process.patch("/vm", r#"{"state":"Paused"}"#);
            process.patch("/vm", r#"{"state":"Resumed"}"#);
        }
        let metrics = process.path("metrics");
        let kept = fs::File::open(metrics).unwrap();
        let ended = process.end();
        for number in 0..FETCHES {
            assert!(ended.guest().contains(&line(number)), "{ended:?}");
        }
        let mut text = String::new();
        std::io::Read::read_to_string(&mut &kept, &mut text).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let lines: Vec<Value> = lines.collect();
        let sum = |key: &str| -> u64 {
            let values = lines.iter().map(|line| line["mmds"][key].as_u64().unwrap());
            values.sum()
        };
        // A token and a value, each on a connection of its own.
        assert_eq!(sum("connections_created"), 2 * FETCHES as u64);
        assert_eq!(sum("connections_destroyed"), 2 * FETCHES as u64);
        assert_eq!(sum("rx_no_token") + sum("rx_invalid_token"), 0);
        assert!(sum("tx_bytes") > (FETCHES * value.len()) as u64);
        for (group, key) in [
            ("net", "tx_queue_event_count"),
            ("net_eth0", "tx_queue_event_count"),
            ("interrupts", "triggers"),
            ("uart", "write_count"),
        ] {
            let counted = lines.iter().filter_map(|line| line[group][key].as_u64());
            assert!(counted.sum::<u64>() > FETCHES as u64, "{group}.{key}");
        }
    }
}
