#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

fn filters(filter: &Value) -> Value {
    json!({ "vcpu": { "default_action": "trap", "filter_action": "allow", "filter": filter } })
}

fn compiled(json: &Value, basic: bool) -> Result<Programs, String> {
    compile(json.to_string().as_bytes(), "x86_64", basic)
}

#[test]
fn filters_are_made_for_each_thread_and_architecture() {
    let argument =
        json!({ "index": 1, "type": "dword", "op": "eq", "val": 44672, "comment": "KVM_RUN" });
    let rules = json!([
        { "syscall": "ioctl", "args": [argument], "comment": "the guest runs" },
        { "syscall": "read" },
    ]);
    let mut json = filters(&rules);
    json["api"] = json!({ "default_action": { "errno": 1 }, "filter_action": "log", "filter": [] });
    json["api"]["comment"] = "nobody".into();
    let mut found = Vec::new();
    for (arch, audit) in [("x86_64", 62), ("aarch64", 183), ("RISCV64", 243)] {
        let made = compile(json.to_string().as_bytes(), arch, false).unwrap();
        assert_eq!(made.architecture, 0xc000_0000 | audit);
        assert_eq!(made.programs.keys().collect::<Vec<_>>(), ["api", "vcpu"]);
        let bytes = made.to_bytes().unwrap();
        assert_eq!(Programs::read(&bytes), Ok(made));
        found.push(bytes);
    }
    assert!(found[0] != found[1] && found[1] != found[2]);
    // Calls of x32 end the process, whatever a filter lets through.
    let kill = instruction(6, 0, 0, libc::SECCOMP_RET_KILL_PROCESS);
    let made = compiled(&json, false).unwrap();
    assert_eq!(made.programs["api"][2], kill);
}

#[test]
fn every_form_of_the_schema_is_taken() {
    for action in [
        json!("allow"),
        json!("log"),
        json!("kill_thread"),
        json!("kill_process"),
        json!({ "errno": 38 }),
        json!({ "trace": 7 }),
    ] {
        let mut json = filters(&json!([]));
        json["vcpu"]["filter_action"] = action;
        compiled(&json, false).unwrap();
    }
    for op in [
        json!("eq"),
        json!("ge"),
        json!("gt"),
        json!("le"),
        json!("lt"),
        json!("ne"),
        json!({ "masked_eq": 255 }),
    ] {
        for (index, len) in [("index", "dword"), ("arg_index", "qword")] {
            let kind = index.replace("index", "type");
            let rule =
                json!({ "syscall": "mmap", "args": [{ index: 2, kind: len, "op": op, "val": 3 }] });
            compiled(&filters(&json!([rule])), false).unwrap();
        }
    }
}

#[test]
fn a_call_without_conditions_counts_whatever_other_rules_say_of_it() {
    let condition = json!({ "index": 0, "type": "dword", "op": "eq", "val": 1 });
    let one = json!({ "syscall": "write", "args": [condition] });
    let plain = json!([{ "syscall": "write" }]);
    let alone = compiled(&filters(&plain), false);
    for (rules, basic) in [
        (json!([one, { "syscall": "write" }]), false),
        (json!([{ "syscall": "write" }, one]), false),
        (json!([{ "syscall": "write", "args": [] }]), false),
        (json!([one]), true),
    ] {
        assert_eq!(compiled(&filters(&rules), basic), alone, "{rules}");
    }
    assert_ne!(compiled(&filters(&json!([one])), false), alone);
}

#[test]
fn a_number_that_is_longer_than_its_argument_is_refused_and_not_cut() {
    let most = u64::from(u32::MAX);
    let with = |kind: &str, op: Value, val: u64| {
        let condition = json!({ "index": 2, "type": kind, "op": op, "val": val });
        filters(&json!([{ "syscall": "mmap", "args": [condition] }]))
    };
    let masked = |mask: u64| json!({ "masked_eq": mask });
    for (op, val, field, value) in [
        (json!("eq"), most + 1, "val", most + 1),
        (json!("lt"), 1 << 32, "val", 1 << 32),
        (masked(4), 4 | 1 << 40, "val", 4 | 1 << 40),
        // Every value would be one of it.
        (masked(1 << 32), 0, "masked_eq", 1 << 32),
    ] {
        let json = with("dword", op.clone(), val);
        let error = compiled(&json, false).unwrap_err();
        let said = format!(
            "the thread \"vcpu\", syscall \"mmap\", the argument 2: {field} is {value}, and 4294967295 is the most of a \
             \"dword\""
        );
        assert!(error.starts_with(&said), "{error}");
        assert!(error.ends_with("or the type \"qword\""), "{error}");
        compiled(&with("qword", op, val), false).unwrap();
        // What is said of arguments is left away.
        compiled(&json, true).unwrap();
    }
    compiled(&with("dword", json!("eq"), most), false).unwrap();
    compiled(&with("dword", masked(most), most), false).unwrap();
}

#[test]
fn what_is_wrong_is_told_with_its_thread() {
    let condition =
        |index: u64, op: &str| json!({ "index": index, "type": "dword", "op": op, "val": 1 });
    let with = |condition: Value| filters(&json!([{ "syscall": "write", "args": [condition] }]));
    let many: Vec<_> = (0..=MOST_CONDITIONS).map(|_| condition(0, "eq")).collect();
    let rules: Vec<_> = (0..4000_u64)
        .map(|value| {
            let condition = json!({ "index": 0, "type": "qword", "op": "eq", "val": value });
            json!({ "syscall": "write", "args": [condition] })
        })
        .collect();
    let mut same = filters(&json!([]));
    same["vcpu"]["filter_action"] = "trap".into();
    let mut other = filters(&json!([]));
    other["vcpu"]["default"] = "trap".into();
    let threads = (0..=MOST_PROGRAMS).map(|number| {
        let filter = &filters(&json!([]))["vcpu"];
        (format!("t{number}"), filter.clone())
    });
    for (json, said) in [
        (json!([]), "filters by the names of their threads"),
        (json!({ "vcpu": {} }), "missing field `default_action`"),
        (other, "unknown field `default`"),
        (
            same,
            "\"vcpu\": default_action and filter_action are the same",
        ),
        (filters(&json!([{ "syscall": "no" }])), "\"vcpu\": "),
        (with(condition(6, "eq")), "\"vcpu\": "),
        (with(condition(0, "like")), "unknown variant `like`"),
        (with(condition(300, "eq")), "invalid value: integer `300`"),
        (
            filters(&json!([{ "syscall": "write", "args": many }])),
            "syscall \"write\": it has 65 args",
        ),
        (filters(&rules.into()), "\"vcpu\": "),
        (
            threads.collect::<serde_json::Map<_, _>>().into(),
            "there are 17 threads",
        ),
        (
            json!({ "x".repeat(33): filters(&json!([]))["vcpu"] }),
            "a name has 1 to 32 bytes",
        ),
    ] {
        let error = compiled(&json, false).unwrap_err();
        assert!(error.contains(said), "{said:?}: {error}");
    }
    let filter = r#"{"default_action":"trap","filter_action":"allow","filter":[]}"#;
    let twice = format!(r#"{{"vmm":{filter},"vmm":{filter}}}"#);
    let error = compile(twice.as_bytes(), "x86_64", false).unwrap_err();
    assert!(
        error.contains("the thread \"vmm\" is there twice"),
        "{error}"
    );
}
