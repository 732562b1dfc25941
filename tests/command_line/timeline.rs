//! `--boot-timeline`, with the built-in guest, whose output includes its command line.

use std::os::unix::fs::symlink;

use crate::common::{Ended, finish, option, vmm};
use serde_json::Value;

fn run(arguments: &[&str]) -> Ended {
    finish(vmm(arguments).spawn().unwrap())
}

#[test]
fn the_steps_of_a_start_follow_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("timeline.json");
    let timeline = option("boot-timeline", &file);
    let init = "--append=Run /sbin/init as init process";
    let report = |arguments: &[&str]| -> Value {
        let ended = run(arguments);
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap()
    };
    let names = |list: &Value| -> Vec<String> {
        let names = list.as_array().unwrap().iter();
        names
            .map(|entry| entry.get("name").unwrap_or(entry).as_str().unwrap().into())
            .collect()
    };

    let with_init = report(&[&timeline, init, "--guest-memory=128"]);
    assert_eq!(with_init["memory_mib"], 128);
    assert_eq!(names(&with_init["missing"]), ["first disk request"]);
    let (mut end_of_last, mut entered) = (0, 0);
    for step in with_init["steps"].as_array().unwrap() {
        let (from, to) = (
            step["from_us"].as_u64().unwrap(),
            step["to_us"].as_u64().unwrap(),
        );
        assert!(from <= to, "{step}");
        if step["of"] == "vmm" {
            assert_eq!(from, end_of_last, "{step}");
            entered = to;
        } else {
            assert_eq!(from, entered, "{step}");
        }
        end_of_last = to;
    }
    assert!(names(&with_init["steps"]).ends_with(&["first console byte".into(), "init".into()]));

    // The file is written anew, and what is not printed is not seen.
    let silent = report(&[&timeline, "--serial=null"]);
    assert!(names(&silent["steps"]).contains(&"first console byte".to_owned()));
    assert_eq!(names(&silent["missing"]), ["first disk request", "init"]);
}

#[test]
fn the_page_has_a_bar_for_each_step_and_nothing_from_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("timeline.html");
    let ended = run(&[&option("boot-timeline", &file), "--append=<script>"]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let page = std::fs::read_to_string(&file).unwrap();
    assert_eq!(page.matches("<tr>").count(), 11, "{page}");
    for text in [
        "<td>first console byte</td>",
        "Not seen: first disk request.",
        "Not seen: init. A Linux kernel says it",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    for text in ["<script", "http", "src=", "NaN", "inf"] {
        assert!(!page.contains(text), "{text}: {page}");
    }
}

#[test]
fn a_timeline_that_cannot_be_written_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| option("boot-timeline", folder.path().join(name));
    for (name, cause, cure) in [
        ("timeline", "the name's ending", "end it in .html or .json"),
        (
            "missing/t.json",
            "the folder that it is in does not exist",
            "make the folder",
        ),
        (".", "the name's ending", "end it in .html or .json"),
    ] {
        let ended = run(&[&place(name)]);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert_eq!(ended.stdout, "", "the guest has not run");
        for text in ["--boot-timeline=", cause, cure] {
            assert!(ended.stderr.contains(text), "{text}: {ended:?}");
        }
    }
}

#[test]
fn r44_a_full_disk_costs_the_timeline_and_not_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("full.json");
    symlink("/dev/full", &file).unwrap();
    let ended = run(&[&option("boot-timeline", &file)]);
    assert!(ended.stdout.starts_with("hello"), "{ended:?}");
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let cause = "cannot write --boot-timeline to";
    assert!(ended.stderr.contains(cause), "{ended:?}");
    assert!(ended.stderr.contains("No space left"), "{ended:?}");
}
