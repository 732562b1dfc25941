//! What `common/interface.json` says of answers is what the public description of the API says, where that is at hand.

#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::interface::{check, part};
use serde_json::{Map, Value, json};

/// Names the description, `firecracker.yaml`.
const DESCRIPTION: &str = "VMM_TEST_API_DESCRIPTION";
/// Reads YAML, every scalar as the text that it is: `Off` is a word there.
const READ: &str =
    "import json, sys, yaml; json.dump(yaml.load(open(sys.argv[1]), yaml.BaseLoader), sys.stdout)";

#[test]
fn wrong_answers_are_found() {
    let info =
        json!({ "app_name": "Firecracker", "id": "a", "state": "Running", "vmm_version": "1" });
    let fault = json!({ "fault_message": "why" });
    for (method, path, status, body) in [
        ("GET", "/", 200, &info),
        ("GET", "/mmds", 200, &json!(null)),
        ("PUT", "/drives/a", 204, &json!(null)),
        ("PUT", "/nowhere", 400, &fault),
        ("PUT", "/mmds", 413, &fault),
    ] {
        check(method, path, status, body).unwrap();
    }
    let without = |key: &str| {
        let mut info = info.clone();
        info.as_object_mut().unwrap().remove(key);
        info
    };
    let with = |key: &str, value: Value| {
        let mut info = info.clone();
        info[key] = value;
        info
    };
    let machine = |vcpus: i32| json!({ "mem_size_mib": 1, "vcpu_count": vcpus });
    check("GET", "/machine-config", 200, &machine(32)).unwrap();
    let config = |drive: Value| json!({ "drives": [drive] });
    let drive = json!({ "drive_id": "a", "is_root_device": true, "socket": null });
    check("GET", "/vm/config", 200, &config(drive)).unwrap();
    for (method, path, status, body) in [
        ("GET", "/", 204, info.clone()),
        ("GET", "/", 200, without("state")),
        ("GET", "/", 200, with("state", json!("Gone"))),
        ("GET", "/", 200, with("id", json!(null))),
        ("GET", "/", 200, with("more", json!(1))),
        ("GET", "/nowhere", 200, info.clone()),
        ("PUT", "/drives/a", 200, json!(null)),
        ("PUT", "/drives/a", 204, json!({})),
        ("PUT", "/drives/a/b", 204, json!(null)),
        ("PUT", "/actions", 400, json!({ "fault_message": "" })),
        ("PUT", "/actions", 400, json!({ "error": "why" })),
        ("PUT", "/actions", 500, fault),
        ("GET", "/machine-config", 200, machine(0)),
        ("GET", "/machine-config", 200, machine(33)),
        ("GET", "/vm/config", 200, config(json!({ "drive_id": "a" }))),
    ] {
        assert!(
            check(method, path, status, &body).is_err(),
            "{method} {path}: {status} {body}"
        );
    }
}

/// A field or an answer of the description in the words of ours.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str() {
        return name.rsplit('/').next().unwrap().to_owned();
    }
    if let Some(words) = schema["enum"].as_array() {
        let words: Vec<_> = words.iter().map(|word| word.as_str().unwrap()).collect();
        return words.join("|");
    }
    match schema["type"].as_str().unwrap() {
        "object" => "any".to_owned(),
        "array" => format!("[{}]", kind(&schema["items"])),
        "integer" => {
            let bound = |name: &str| schema[name].as_str().unwrap_or_default();
            match (bound("minimum"), bound("maximum")) {
                ("", "") => "integer".to_owned(),
                (least, most) => format!("integer {least}..{most}"),
            }
        }
        other => other.to_owned(),
    }
}

fn definition(schema: &Value) -> Value {
    let Some(fields) = schema["properties"].as_object() else {
        return kind(schema).into();
    };
    let required = schema["required"].as_array();
    let fields = fields.iter().map(|(name, field)| {
        let is_required = required.is_some_and(|all| all.iter().any(|one| one == name));
        let mark = if is_required { "!" } else { "" };
        (format!("{name}{mark}"), kind(field).into())
    });
    Value::Object(fields.collect())
}

/// The status of success, and the type of its answer.
fn success(operation: &Value) -> String {
    let responses = operation["responses"].as_object().unwrap();
    let mut successes = responses
        .iter()
        .filter(|(status, _)| status.starts_with('2'));
    let (status, answer) = successes.next().unwrap();
    assert!(successes.next().is_none(), "{operation}");
    match &answer["schema"] {
        Value::Null => status.clone(),
        schema => format!("{status} {}", kind(schema)),
    }
}

/// The types that answers have.
fn reached(definitions: &Value, kind: &str, found: &mut Map<String, Value>) {
    let name = kind.trim_matches(['[', ']']);
    if definitions[name].is_null() || found.contains_key(name) {
        return;
    }
    let definition = definition(&definitions[name]);
    found.insert(name.to_owned(), definition.clone());
    for kind in definition.as_object().into_iter().flat_map(Map::values) {
        reached(definitions, kind.as_str().unwrap(), found);
    }
}

#[test]
fn it_is_the_public_description() {
    let Some(path) = std::env::var_os(DESCRIPTION) else {
        eprintln!(
            "SKIPPED: {DESCRIPTION} does not name the description of the API, firecracker.yaml"
        );
        return;
    };
    let mut python = Command::new("python3");
    let read = python.args(["-c", READ]).arg(path).output().unwrap();
    let said = String::from_utf8_lossy(&read.stderr);
    assert!(
        read.status.success(),
        "python3 with its module yaml: {said}"
    );
    let description: Value = serde_json::from_slice(&read.stdout).unwrap();
    let mut types = Map::new();
    reached(&description["definitions"], "Error", &mut types);
    let mut paths = Map::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        let methods = methods.as_object().unwrap().iter();
        let methods: Map<_, _> = methods
            .map(|(method, operation)| {
                let success = success(operation);
                let kind = success.split(' ').nth(1).unwrap_or_default();
                reached(&description["definitions"], kind, &mut types);
                (method.to_uppercase(), success.clone().into())
            })
            .collect();
        paths.insert(path.clone(), methods.into());
    }
    assert_eq!(&paths, part("paths"));
    assert_eq!(&types, part("types"));
}
