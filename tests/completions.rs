//! The files for shells and man that a release hands out.

#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::{finish, vmm};

#[test]
fn shells_and_man_know_the_options() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let ended = finish(
        vmm(&["generate-files", path.to_str().unwrap()])
            .spawn()
            .unwrap(),
    );
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    for (name, texts) in [
        ("vmm-reference.bash", ["--guest-memory", "--dump-dtb"]),
        ("_vmm-reference", ["--guest-memory", "--dump-dtb"]),
        ("vmm-reference.fish", ["guest-memory", "dump-dtb"]),
        (
            "vmm-reference.1",
            ["guest\\-memory", "vmm\\-reference\\-plan(1)"],
        ),
        ("vmm-reference-plan.1", ["dump\\-dtb", "guest\\-memory"]),
        ("vmm-reference-inspect.1", ["KERNEL", "json"]),
    ] {
        let text = std::fs::read_to_string(path.join(name)).unwrap();
        for expected in texts {
            assert!(text.contains(expected), "{name}: {expected}");
        }
        assert!(!text.contains("generate-files"), "{name}");
    }
    let bash = Command::new("bash")
        .arg("-n")
        .arg(path.join("vmm-reference.bash"))
        .status();
    assert!(bash.unwrap().success());
}

#[test]
fn a_folder_that_is_none_is_named() {
    let ended = finish(vmm(&["generate-files", "/nonexistent"]).spawn().unwrap());
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("/nonexistent: ") && ended.stderr.contains("cure:"));
}
