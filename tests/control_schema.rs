//! The schema of the control socket is the one that is committed, and true of what is said there.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use vmm_reference::{Command, Console, ControlSocket, Reply, State, Vm, VmConfig, control_schema};

const COMMITTED: &str = include_str!("../docs/control-schema.json");

#[test]
fn the_committed_schema_is_that_of_the_types() {
    let committed: Value = serde_json::from_str(COMMITTED).unwrap();
    assert!(
        committed == control_schema(),
        "write it anew: cargo run --features=schema --example control_schema > docs/control-schema.json"
    );
}

/// The part of JSON Schema (draft 2020-12) that the schema uses; another keyword fails the test.
struct Schema(Value);

impl Schema {
    fn accepts(&self, definition: &str, value: &Value) -> bool {
        let schema = json!({ "$ref": format!("#/$defs/{definition}") });
        self.check(&schema, value).is_some()
    }

    /// The properties that it knows of the value, if the value is right.
    fn check(&self, schema: &Value, value: &Value) -> Option<BTreeSet<String>> {
        let mut known = BTreeSet::new();
        let Value::Object(schema) = schema else {
            return (*schema == json!(true)).then_some(known);
        };
        let no_properties = serde_json::Map::new();
        let properties = value.as_object().unwrap_or(&no_properties);
        // The last word about properties is that on those that nobody else knows.
        let mut keywords: Vec<_> = schema.iter().collect();
        let last = ["additionalProperties", "unevaluatedProperties"];
        keywords.sort_by_key(|(keyword, _)| last.contains(&keyword.as_str()));
        for (keyword, rule) in keywords {
            let list = || rule.as_array().unwrap();
            let all = |rules: &[Value]| -> Vec<_> {
                rules.iter().map(|rule| self.check(rule, value)).collect()
            };
            let right = match keyword.as_str() {
                "$ref" => {
                    let pointer = rule.as_str().unwrap().strip_prefix('#').unwrap();
                    known.extend(self.check(self.0.pointer(pointer).unwrap(), value)?);
                    true
                }
                "type" => match rule {
                    Value::String(name) => is_a(name, value),
                    _ => list()
                        .iter()
                        .any(|name| is_a(name.as_str().unwrap(), value)),
                },
                "const" => rule == value,
                "enum" => list().contains(value),
                "minimum" => value
                    .as_f64()
                    .is_none_or(|number| number >= rule.as_f64().unwrap()),
                "maximum" => value
                    .as_f64()
                    .is_none_or(|number| number <= rule.as_f64().unwrap()),
                "required" => {
                    let mut names = list().iter().map(|name| name.as_str().unwrap());
                    names.all(|name| properties.contains_key(name))
                }
                "properties" => rule.as_object().unwrap().iter().all(|(name, rule)| {
                    known.insert(name.clone());
                    let value = properties.get(name);
                    value.is_none_or(|value| self.check(rule, value).is_some())
                }),
                "items" => {
                    let items = value.as_array().into_iter().flatten();
                    items
                        .into_iter()
                        .all(|item| self.check(rule, item).is_some())
                }
                "anyOf" | "oneOf" | "allOf" => {
                    let found = all(list());
                    let right = found.iter().flatten().count();
                    known.extend(found.iter().flatten().flatten().cloned());
                    match keyword.as_str() {
                        "anyOf" => right > 0,
                        "oneOf" => right == 1,
                        _ => right == found.len(),
                    }
                }
                "additionalProperties" | "unevaluatedProperties" => {
                    *rule != json!(false) || properties.keys().all(|name| known.contains(name))
                }
                "description" | "title" | "format" | "pattern" | "default" => true,
                other => panic!("the test does not know {other}"),
            };
            if !right {
                return None;
            }
        }
        Some(known)
    }
}

fn is_a(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type {other}"),
    }
}

/// Requests of every kind, good and bad.
fn requests() -> Vec<(bool, Value)> {
    let device =
        |change: Value| json!({"id": 1, "command": "device", "device": "x", "change": change});
    vec![
        (true, json!({"id": 9, "subscribe": ["state", "lost"]})),
        // The last subscription counts.
        (true, json!({"subscribe": []})),
        (true, json!({"command": "reset"})),
        (true, json!({"command": "status"})),
        (true, json!({"id": 1, "command": "metrics"})),
        (
            true,
            json!({"id": "a", "command": "shutdown", "timeout_s": 5}),
        ),
        (
            true,
            device(json!({"limits": {"bw": 1, "iops-burst": "1M", "iops": 1}})),
        ),
        (true, device(json!({"limits": {}}))),
        (true, device(json!({"link": "down"}))),
        (true, device(json!({"target": 4096}))),
        (true, device(json!({"size": {"columns": 80, "rows": 25}}))),
        (false, json!({})),
        (false, json!({"command": "fly"})),
        (false, json!({"command": "pause", "hard": true})),
        (false, json!({"id": [], "command": "pause"})),
        (false, json!({"command": "shutdown", "timeout_s": -1})),
        (false, json!({"command": "device", "device": "x"})),
        (false, device(json!({"limits": {"speed": 1}}))),
        (false, device(json!({"limits": {}, "link": "up"}))),
        (false, device(json!({"link": "sideways"}))),
        (
            false,
            device(json!({"size": {"columns": 70000, "rows": 1}})),
        ),
        (false, json!({"subscribe": "all"})),
        (false, json!({"subscribe": ["weather"]})),
        (false, json!({"subscribe": [], "command": "pause"})),
    ]
}

#[test]
fn what_is_said_on_a_control_socket_is_what_the_schema_says() {
    let schema = Schema(control_schema());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    // mov dx, 0x3fd; in al, dx; jmp
    let kernel = common::kernel(&[0x66, 0xba, 0xfd, 0x03, 0xec, 0xeb, 0xfd]);
    let config = VmConfig::default().with_kernel(kernel.path());
    let vm = Vm::new(&config, Console::null()).unwrap();
    let server = ControlSocket::bind(&path)
        .unwrap()
        .serve(vm.handle())
        .unwrap();
    let handle = vm.handle();
    let running = thread::spawn(move || vm.run());
    // What is asked of a machine that does not run yet is refused, a reset among it.
    let is_created = || match handle.command(Command::Status {}).unwrap() {
        Reply::Status(status) => status.state == State::Created,
        other => panic!("{other:?}"),
    };
    while is_created() {
        thread::yield_now();
    }

    let mut client = UnixStream::connect(&path).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let mut ask = |request: &Value| client.write_all(format!("{request}\n").as_bytes()).unwrap();
    let mut events = BTreeSet::new();
    let mut event = |line: &Value| {
        let name = line["event"].as_str()?;
        assert!(schema.accepts("Event", line), "{line}");
        events.insert(name.to_owned());
        Some(name == "ended")
    };
    let greeting = next();
    assert!(schema.accepts("Greeting", &greeting), "{greeting}");
    for (good, request) in requests() {
        let known = schema.accepts("Request", &request) || schema.accepts("Subscription", &request);
        assert_eq!(known, good, "{request}");
        ask(&request);
        let mut answer = next();
        while event(&answer).is_some() {
            answer = next();
        }
        assert!(schema.accepts("Answer", &answer), "{request}: {answer}");
        // Whoever parses requests is of the same opinion.
        let refused = answer["error"]["kind"] == json!("request");
        assert_eq!(refused, !good, "{request}: {answer}");
    }
    for command in ["pause", "resume", "reset", "pause", "shutdown", "stop"] {
        ask(&json!({"command": command}));
    }
    let mut answers = 0;
    loop {
        let line = next();
        match event(&line) {
            Some(true) => break,
            Some(false) => {}
            None => {
                assert!(schema.accepts("Answer", &line), "{line}");
                answers += 1;
            }
        }
    }
    assert_eq!(answers, 6);
    for name in ["state", "restart", "shutdown-asked"] {
        assert!(events.contains(name), "{name}: {events:?}");
    }
    running.join().unwrap().unwrap();
    drop(server);
}
