//! What a configuration file's errors say: the place, the key, and what would be right in plain words.

use std::path::Path;

use crate::common::{finish, option, vmm};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use vmm_reference::{BalloonConfig, BlkConfig, Limits, NetConfig, VmConfig, VsockConfig};

/// What is said about a file with this text.
fn said(folder: &Path, name: &str, text: &str) -> Option<String> {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    let arguments = ["--dump-config", &option("config", &path)];
    let ended = finish(vmm(&arguments).spawn().unwrap());
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    match ended.status.code() {
        Some(0) => None,
        Some(2) => Some(ended.stderr),
        _ => panic!("{ended:?}"),
    }
}

#[test]
fn messages_have_place_key_and_range() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text, expected) in [
        (
            "a.toml",
            "vcpus = 1\n[[blk]]\npath = \"a\"\n[[blk]]\npath = \"b\"\nqueues = 99\n",
            "line 6, column 10: blk[1].queues: it is 1 to 16, not 99",
        ),
        (
            "b.toml",
            "vcpus = \"two\"\n",
            "line 1, column 9: vcpus: it is 1 to as many as this host offers, not \"two\"",
        ),
        (
            "c.toml",
            "rng = 1",
            "line 1, column 7: rng: it is true or false, not 1",
        ),
        (
            "d.toml",
            "on-reboot = \"maybe\"",
            "line 1, column 13: on-reboot: it is exit or restart, not \"maybe\"",
        ),
        (
            "e.toml",
            "net = \"vm0\"",
            "line 1, column 7: net: it is a list, not \"vm0\"",
        ),
        (
            "f.toml",
            "[vsock]\npath = \"x\"",
            "vsock: the key `cid` is missing",
        ),
        (
            "g.toml",
            "[[net]]\ntap = \"vm0\"\nmtu = 70000",
            "line 3, column 7: net[0].mtu: it is 68 to 65535, not 70000",
        ),
        (
            "h.toml",
            "[[blk]]\npath = \"a\"\nlimits = { bw-burst = \"1M\" }",
            "blk[0]: bw-burst=\"1048576\": without bw nothing is limited",
        ),
        (
            "i.toml",
            "blk = [\"a\", \"b,ro,ro\"]",
            "line 1, column 13: blk[1]: ro is given twice",
        ),
        (
            "j.toml",
            "[[blk]]\npath = \"a\"\nqueue-size = 100",
            "blk[0].queue-size: it is a power of two, 2 to 1024, not 100",
        ),
        (
            "k.toml",
            "vcpus = 1\nvcpus = 2",
            "line 2, column 1: vcpus: duplicate key",
        ),
        (
            "l.json",
            "{\n  \"net\": [{\"tap\": \"vm0\", \"queues\": 99}]\n}",
            "line 2, column 37: net[0].queues: it is 1 to 8, not 99",
        ),
        (
            "m.json",
            "{\"vcpus\": 1,\n\"vcpus\": 2}",
            "line 2, column 7: the key `vcpus` stands twice",
        ),
        (
            "n.json",
            "{\"vcpus\": 1.5}",
            "vcpus: it is 1 to as many as this host offers, not 1.5",
        ),
        (
            "o.json",
            "{\"blk\": [{\"path\": \"a\", \"engine\": \"fast\"}]}",
            "blk[0].engine: it is auto, io_uring or sync, not \"fast\"",
        ),
        (
            "p.json",
            "{\"blk\": [{\"path\": \"a\", \"limits\": {\"bw\": 0}}]}",
            "blk[0].limits.bw: \"0\": it is 1 to 1024T",
        ),
        ("q.json", "{} {}", "line 1, column 4: trailing characters"),
        (
            "r.json",
            "[]",
            "line 1, column 1: it is a table, not a list",
        ),
        (
            "s.toml",
            "guest-memory = 99999999999999",
            "guest-memory: \"99999999999999\": it is 16M to 16777215T",
        ),
        (
            "t.toml",
            "vsock = 2020-01-01",
            "vsock: it is a date or a time",
        ),
        (
            "u.toml",
            "memory-backing = \"file\"",
            "memory-backing: it is anonymous or shared, not \"file\"",
        ),
        (
            "v.toml",
            "huge-pages = \"4M\"",
            "huge-pages: it is off, transparent, 2M or 1G, not \"4M\"",
        ),
    ] {
        let said = said(folder.path(), name, text).unwrap_or_default();
        assert!(
            said.contains(expected),
            "{name}: `{expected}` not in {said}"
        );
        assert!(said.contains("cure: "), "{said}");
    }
}

#[test]
fn a_value_of_a_wrong_type_is_told_the_words_there_are() {
    let folder = tempfile::tempdir().unwrap();
    for (key, words) in [
        ("memory-backing", "anonymous or shared"),
        ("huge-pages", "off, transparent, 2M or 1G"),
        ("serial", "stdio, null or file=PATH"),
        ("console", "stdio, null or file=PATH"),
        ("console-overflow", "wait or drop"),
        ("on-reboot", "exit or restart"),
        ("transport", "mmio or pci"),
        ("lean", "auto, on or off"),
        ("rng", "true or false"),
    ] {
        for value in ["3", "1.5", "[]", "{}"] {
            let expected = format!("{key}: it is {words}, not ");
            for (name, text) in [
                ("x.toml", format!("{key} = {value}")),
                ("x.json", format!("{{\"{key}\": {value}}}")),
            ] {
                let said = said(folder.path(), name, &text).unwrap_or_default();
                assert!(said.contains(&expected), "`{expected}` not in {said}");
            }
        }
    }
    for (text, expected) in [
        (
            "[[blk]]\npath = \"a\"\nengine = 3",
            "blk[0].engine: it is auto, io_uring or sync, not 3",
        ),
        (
            "[[net]]\ntap = \"a\"\nmac = 3",
            "net[0].mac: it is six hexadecimal numbers, 02:00",
        ),
    ] {
        let said = said(folder.path(), "x.toml", text).unwrap_or_default();
        assert!(said.contains(expected), "`{expected}` not in {said}");
    }
}

#[test]
fn what_is_no_toml_or_json_is_said_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text, expected) in [
        (
            "a.toml",
            "vcpus = \n",
            "line 1, column 9: vcpus: no value of TOML",
        ),
        ("b.toml", "kernel = \"k", "column 12: kernel: invalid"),
        (
            "c.toml",
            "[[blk]]\npath = \"a\"\n[[blk]]\nqueues = ]",
            "line 4, column 10: blk[1].queues: missing array opening",
        ),
        (
            "d.toml",
            "vcpus = 1\nkernel",
            "line 2, column 7: key with no value",
        ),
        (
            "e.json",
            "{\"vcpus\": 1,}",
            "line 1, column 13: trailing comma",
        ),
        (
            "f.json",
            "{vcpus: 1}",
            "line 1, column 2: key must be a string",
        ),
        (
            "g.json",
            "{\"vcpus\": }",
            "line 1, column 11: vcpus: expected value",
        ),
        (
            "h.json",
            "{\"blk\": [{\"path\": tru}]}",
            "line 1, column 22: blk[0].path: expected ident",
        ),
    ] {
        let said = said(folder.path(), name, text).unwrap_or_default();
        assert!(said.contains(expected), "`{expected}` not in {said}");
        assert!(!said.contains('?'), "{said}");
    }
}

/// By the platform, by the host, by what else there is.
#[test]
fn what_is_wrong_with_a_value_of_a_file_is_said_with_its_place_whenever_it_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let disk = crate::common::file(&[0; 512]);
    let disk = disk.path().display();
    for (name, text, expected) in [
        (
            "a.toml",
            "rng = false\nvcpus = 5000".to_owned(),
            "line 2, column 9: vcpus=5000: this host offers 1 to ",
        ),
        (
            "a.json",
            "{\"rng\": false,\n \"vcpus\": 5000}".to_owned(),
            "line 2, column 14: vcpus=5000: this host offers 1 to ",
        ),
        (
            "b.toml",
            "guest-memory = \"8M\"".to_owned(),
            "line 1, column 16: guest-memory=8M: too little",
        ),
        (
            "c.toml",
            format!("[[blk]]\npath = \"{disk}\"\n\n[[blk]]\npath = \"/no/where\""),
            "line 5, column 8: blk[1].path=/no/where: there is no folder /no",
        ),
        (
            "d.toml",
            format!("blk = [\"{disk}\",\n  \"/no/where,ro\"]"),
            "line 2, column 3: blk[1].path=/no/where: there is no folder /no",
        ),
        (
            "e.toml",
            "kernel = \"/no/where\"".to_owned(),
            "line 1, column 10: kernel=/no/where: ",
        ),
        (
            "f.toml",
            "serial = \"file=/no/where\"".to_owned(),
            "line 1, column 10: serial=file=/no/where: ",
        ),
        (
            "g.toml",
            "[balloon]\ntarget = \"1G\"".to_owned(),
            "line 2, column 10: balloon.target=1024M: the guest has 256M of memory",
        ),
        (
            "h.toml",
            format!("blk = [{{ id = \"x\", path = \"{disk}\" }}]\nballoon = {{ id = \"x\" }}"),
            "line 2, column 18: balloon.id=x: the virtio block device before it has this id",
        ),
        (
            "i.toml",
            "net = [{ fd = 999 }]".to_owned(),
            "line 1, column 15: net[0].fd=999: ",
        ),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, &text).unwrap();
        let file = option("config", &path);
        let expected = format!("error: {file}: {expected}");
        for command in [&["plan"][..], &[]] {
            crate::common::refused(&[command, &[&file]].concat(), &[&expected]);
        }
    }
    // What the command line says instead is the command line's.
    let file = option("config", folder.path().join("a.toml"));
    crate::common::refused(
        &[&file, "--vcpus=6000"],
        &["error: --vcpus=6000: this host"],
    );
    crate::common::refused(
        &["--vcpus=6000", &file],
        &["error: --vcpus=6000: this host"],
    );
}

/// Every key there is, with a value.
fn full() -> Value {
    let limits =
        "bw=1 bw-burst=1 bw-refill=1 bw-once=1 iops=1 iops-burst=1 iops-refill=1 iops-once=1";
    let limits: Limits = limits.parse().unwrap();
    let disk = BlkConfig::new("a")
        .with_id("d")
        .with_read_only()
        .with_serial("s")
        .with_direct()
        .with_limits(limits);
    let net = NetConfig::default()
        .with_id("n")
        .with_tap("vm0")
        .with_fd(7)
        .with_mac("02:00:00:00:00:01".parse().unwrap())
        .with_mtu(1500)
        .with_limits(limits)
        .with_rx_limits(limits)
        .with_tx_limits(limits);
    let balloon = BalloonConfig::default()
        .with_id("b")
        .with_target(1 << 20)
        .with_deflate_on_oom()
        .with_free_page_reporting()
        .with_free_page_hinting();
    let config = VmConfig::default()
        .with_kernel("k")
        .with_initrd("i")
        .with_cmdline("c")
        .with_append("a")
        .with_memory_mib(1024)
        .with_memory_backing(vmm_reference::MemoryBacking::Shared)
        .with_huge_pages(vmm_reference::HugePages::Reserved2M)
        .with_disk(disk)
        .with_net(net)
        .with_vsock(VsockConfig::new(3, "v").with_id("s"))
        .with_console()
        .with_balloon(balloon)
        .with_overcommit();
    let mut full = serde_json::to_value(config).unwrap();
    for (key, value) in [("serial", "stdio"), ("console", "null"), ("control", "c")] {
        full[key] = value.into(); // The program's own.
    }
    full
}

/// The keys that a file's table may have, as the error for one that there is not lists them.
fn keys<T: DeserializeOwned>() -> Vec<String> {
    let said = match serde_json::from_value::<T>(json!({"no-key": 1})) {
        Ok(_) => panic!("no such key"),
        Err(error) => error.to_string(),
    };
    let names = said.split('`').skip(1).step_by(2).skip(1);
    names.map(str::to_owned).collect()
}

/// A new key has to be added to [`full`], and to the documentation.
#[test]
fn the_full_configuration_is_full() {
    let full = full();
    for (table, keys) in [
        (&full, keys::<VmConfig>()),
        (&full["blk"][0], keys::<BlkConfig>()),
        (&full["net"][0], keys::<NetConfig>()),
        (&full["vsock"], keys::<VsockConfig>()),
        (&full["balloon"], keys::<BalloonConfig>()),
        (&full["blk"][0]["limits"], keys::<Limits>()),
    ] {
        assert!(keys.len() > 2, "{keys:?}");
        for key in keys {
            assert!(!table[&key].is_null(), "{key} is missing in {table}");
        }
    }
}

/// Calls `see` with the path of every value, and all with `see`'s value there instead.
fn each(value: &Value, path: &str, see: &mut dyn FnMut(&str)) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = format!("{path}/{key}");
                see(&path);
                each(value, &path, see);
            }
        }
        Value::Array(list) => {
            for (place, value) in list.iter().enumerate() {
                let path = format!("{path}/{place}");
                see(&path);
                each(value, &path, see);
            }
        }
        _ => {}
    }
}

fn paths(value: &Value) -> Vec<String> {
    let mut paths = Vec::new();
    each(value, "", &mut |path| paths.push(path.to_owned()));
    paths
}

/// `/blk/0/queues` as a message names it.
fn named(pointer: &str) -> String {
    let mut name = String::new();
    for part in pointer.split('/').skip(1) {
        match part.parse::<usize>() {
            Ok(place) => name += &format!("[{place}]"),
            Err(_) if name.is_empty() => name += part,
            Err(_) => name += &format!(".{part}"),
        }
    }
    name
}

/// What only who wrote the program has heard of.
const WORDS: &str = "u8, u16, u32, u64, i32, i64, i128, usize, struct, enum, invalid type, invalid value, expected, \
    variant, visitor, sequence, digit, target type, Config";

#[test]
fn no_message_names_a_type_of_the_program() {
    let full = full();
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(&full);
    assert!(paths.len() > 45, "{paths:?}");
    let wrong = [
        json!(-1),
        json!(1.5),
        json!(u64::MAX),
        json!(true),
        json!("\u{1}"),
        json!([[]]),
        json!([1, 2, 3, 4]),
        json!({"no-key": 1}),
        json!(null),
    ];
    for path in &paths {
        for value in &wrong {
            let mut changed = full.clone();
            // One of the two, or the check of both together hides the others.
            changed["net"][0]
                .as_object_mut()
                .unwrap()
                .remove(if path.ends_with("/fd") { "tap" } else { "fd" });
            let Some(target) = changed.pointer_mut(path) else {
                continue;
            };
            *target = value.clone();
            let mut texts = vec![("x.json", serde_json::to_string(&changed).unwrap())];
            if let Ok(toml) = toml::to_string(&changed) {
                texts.push(("x.toml", toml));
            }
            for (name, text) in texts {
                let Some(said) = said(folder.path(), name, &text) else {
                    continue;
                };
                // The folder's name is drawn by chance: `u8` may stand in it.
                let said = said.replace(folder.path().to_str().unwrap(), "");
                let first = said.lines().next().unwrap();
                for word in WORDS.split(", ") {
                    assert!(
                        !first.contains(word),
                        "{path} = {value}: `{word}` in {first}"
                    );
                }
                // What two keys of a table say together has the table's name.
                let table = match (path.contains("limits/"), value) {
                    (true, Value::Null) => named(path.rsplitn(3, '/').nth(2).unwrap()),
                    _ if path.ends_with("/tap") || path.ends_with("/fd") => "net[0]".to_owned(),
                    _ => named(path),
                };
                // What tables say together names the option.
                assert!(
                    first.starts_with(&format!("error: --{}", named(path)))
                        || first.contains(&format!(": {table}"))
                            && first.contains(": line ")
                            && first.contains(", column "),
                    "{path} = {value}: {first}"
                );
            }
        }
    }
}

#[test]
fn the_documentation_has_every_key() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/configuration.md")).unwrap();
    let full = full();
    for path in paths(&full) {
        let name = named(&path).replace("[0]", "");
        // Tables that have the keys of another one.
        let name = name.replace(".rx-", ".").replace(".tx-", ".");
        let name = name.replace("rng-limits.", "blk.limits.");
        if name.ends_with(']') || path.ends_with("/0") {
            continue;
        }
        let row = format!("| `{name}` |");
        assert!(text.contains(&row), "no row {row} in docs/configuration.md");
    }
    assert!(
        full.as_object()
            .is_some_and(|map: &Map<_, _>| map.len() > 10)
    );
}
